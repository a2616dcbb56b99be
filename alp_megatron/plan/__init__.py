"""What a run would need: memory, traffic and time, estimated from its configuration alone."""
