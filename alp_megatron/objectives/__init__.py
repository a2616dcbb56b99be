"""Pure functions on tensors: advantages, log-ratios, clipping, loss weights, methods."""
