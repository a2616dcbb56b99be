"""Quantisation of the export stream for rollouts: formats, which tensors, names, configuration."""
