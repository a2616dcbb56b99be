"""The sizes that Transformer Engine's FP8 kernels take."""

# Of a rank's part of the tokens and of each dimension of a linear layer, by recipe.
ALIGNMENT = {"delayed": 16, "tensorwise": 16, "blockwise": 128, "mxfp8": 32}
