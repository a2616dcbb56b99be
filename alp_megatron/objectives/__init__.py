"""Computes on tensors, purely: advantages, log-ratios, clipping, loss weights."""
