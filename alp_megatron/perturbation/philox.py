"""Writes the noise down plainly, in numpy: what every kernel is checked against.

Philox 4x32-10 is from Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
1, 2, 3" (SC 2011). One block of four words makes the normals of four channels, so a token's
noise depends on the key, layer, sample, position and channel, and on nothing else.
"""

import numpy as np

MAX_LAYERS = 2**12
MAX_CHANNELS = 4 * 2**20

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Does ten rounds over each counter: uint32 [..., 4] -> uint32 [..., 4]."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    for r in range(10):
        k0, k1 = (np.uint64((key[i] + r * _WEYL[i]) & 0xFFFFFFFF) for i in range(2))
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def counters(
    layer: int, sample_ids: np.ndarray, positions: np.ndarray, blocks: np.ndarray
) -> np.ndarray:
    """Returns the counter of each row and block of four channels: uint32 [n, len(blocks), 4].

    Word 0 is layer << 20 | channel // 4, word 1 the position, words 2 and 3 the low and high
    halves of the sample id. The fields do not overlap, so no two normals share a counter
    while layer < MAX_LAYERS, channel < MAX_CHANNELS and position < 2**32.
    """
    out = np.empty((len(sample_ids), len(blocks), 4), dtype=np.uint32)
    ids = sample_ids.astype(np.uint64)
    out[..., 0] = (layer << 20) | blocks
    out[..., 1] = positions.astype(np.uint32)[:, None]
    out[..., 2] = (ids & _LOW).astype(np.uint32)[:, None]
    out[..., 3] = (ids >> _HALF).astype(np.uint32)[:, None]
    return out


def box_muller(words: np.ndarray) -> np.ndarray:
    """Makes four normals of four uint32 words, in float64: uint32 [..., 4] -> float64 [..., 4].

    Words (x, y) give r cos(a), r sin(a) with r = sqrt(-2 log u), u = (x + 1/2) / 2**32 and
    a = 2 pi (y + 1/2) / 2**32. x is rounded to fp32 first, which keeps 24 significant bits
    of the small u that make the tails: u lies in [2**-33, 1] and |z| reaches 6.7.
    """
    x, y = words[..., 0::2], words[..., 1::2]
    u = (x.astype(np.float32) + np.float32(0.5)).astype(np.float64) * 2.0**-32
    angle = 2 * np.pi * (y.astype(np.float64) + 0.5) * 2.0**-32
    radius = np.sqrt(-2 * np.log(u))
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(words.shape)


def reference_gaussian(
    words: tuple[int, int],
    layer: int,
    sample_ids: np.ndarray,
    positions: np.ndarray,
    hidden_size: int,
    channel_start: int = 0,
) -> np.ndarray:
    """Computes `gaussian` for key words, in float64: int64 [n] twice -> [n, hidden_size]."""
    first, offset = divmod(channel_start, 4)
    blocks = np.arange(first, (channel_start + hidden_size + 3) // 4)
    normals = box_muller(philox4x32(counters(layer, sample_ids, positions, blocks), words))
    return normals.reshape(len(sample_ids), -1)[:, offset : offset + hidden_size]
