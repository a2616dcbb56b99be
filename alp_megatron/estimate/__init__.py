"""What a run would need: memory, traffic, time."""
