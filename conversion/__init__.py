"""Converts models between Hugging Face directories and Megatron checkpoints, a layer at a time."""
