"""Hugging Face directories and Megatron checkpoints, from files to files, a layer at a time."""
