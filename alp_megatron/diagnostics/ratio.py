"""The envelope of the importance ratio over one global batch."""

import numpy as np
from numpy.typing import ArrayLike

PERCENTILES = (1, 2, 50, 98, 99)


def ratio_metrics(
    log_ratio: ArrayLike,
    mask: ArrayLike,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
    dual_clip: ArrayLike,
    prefix: str = "ratio",
) -> dict[str, float]:
    """`{prefix}/...` over the unmasked tokens, in fp64; all arguments [t], numpy or CPU tensors.

    `log_ratio` is the objective's, so already clamped. `std` is the population's; percentiles
    interpolate linearly; the clip metrics are shares of the unmasked tokens. At sequence
    level each token counts with its sequence's ratio. An empty batch gives ratio 1, nothing
    clipped.
    """
    keep = np.asarray(mask) > 0
    ratio = np.exp(np.asarray(log_ratio, dtype=np.float64)[keep]) if keep.any() else np.ones(1)
    values = {"mean": ratio.mean(), "std": ratio.std(), "min": ratio.min(), "max": ratio.max()}
    for percent, value in zip(PERCENTILES, np.percentile(ratio, PERCENTILES), strict=True):
        values[f"p{percent:02d}"] = value
    flags = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}
    for name, flag in flags.items():
        values[name] = np.asarray(flag)[keep].sum() / ratio.size
    return {f"{prefix}/{name}": float(value) for name, value in values.items()}
