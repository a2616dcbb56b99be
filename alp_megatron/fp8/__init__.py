"""FP8 training: Transformer Engine's on CUDA, its numerics in plain torch elsewhere."""
