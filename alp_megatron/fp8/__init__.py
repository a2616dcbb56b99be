"""Trains in FP8: by Transformer Engine on CUDA, by its numerics in plain torch elsewhere."""
