"""Device, process groups, and what lets Megatron-Core run on a CPU."""
