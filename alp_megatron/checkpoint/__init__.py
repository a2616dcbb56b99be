"""Checkpoints of a run: written beside the training, whole or absent, proved by a manifest."""
