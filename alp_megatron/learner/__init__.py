"""Megatron's schedules, the optimizer, and what a checkpoint holds of them."""
