"""Implements the noise kernels for CUDA, in Triton; `philox.py` says what they compute.

The integers are those of the CPU kernels; the normals agree to 1e-6, since a GPU may fuse
multiplications and additions. The key is read from device memory and nothing waits for the
host, so a CUDA graph can capture the launches and later replay them under another key.
"""

import torch
import triton
import triton.language as tl

_TILE = 256  # blocks of four channels that one program handles at a time


@triton.jit
def _radius(x):
    """sqrt(-2 log u) of the word x; the polynomial is that of Cephes' logf."""
    t = x.to(tl.float32) + 0.5
    bits = t.to(tl.int32, bitcast=True)
    # t = 2**e * m with m in [sqrt(1/2), sqrt(2)): 0x3F3504F3 is sqrt(1/2).
    e = (bits - 0x3F3504F3) >> 23
    f = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    p = f * 7.0376836292e-2 - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    exponent = (e - 32).to(tl.float32)
    square = f * f
    log = p * f * square + exponent * -2.12194440e-4
    log = log - 0.5 * square
    log = (log + f) + exponent * 0.693359375
    # Fused arithmetic may leave the log of u = 1 a rounding above zero.
    return tl.sqrt_rn(tl.maximum(-2.0 * log, 0.0))


@triton.jit
def _pair(x, y):
    """Box-Muller on two words; sine and cosine by Cephes' polynomials on [-pi/4, pi/4]."""
    r = _radius(x)
    # y less its nearest quarter turn, in 2**-34 turns: the wrap to int32 is the reduction.
    a = ((y << 2) | 2).to(tl.int32, bitcast=True).to(tl.float32) * 3.6572951981495367e-10
    q = a * a
    sin = (q * -1.9515295891e-4 + 8.3321608736e-3) * q - 1.6666654611e-1
    sin = sin * q * a + a
    cos = (q * 2.4433157118e-5 - 1.3887316255e-3) * q + 4.1666645683e-2
    cos = cos * q * q - 0.5 * q + 1.0
    # The quarter turns, 0 to 3, that the reduction took away.
    quarter = ((y >> 29) + 1) >> 1
    odd = (quarter & 1) != 0
    z0 = r * tl.where(odd, sin, cos)
    z1 = r * tl.where(odd, cos, sin)
    z0 = tl.where(((quarter + 1) & 2) != 0, -z0, z0)
    z1 = tl.where((quarter & 2) != 0, -z1, z1)
    return z0, z1


@triton.jit
def _normals(key, layer, sample_id, position, blocks):
    """z of channels 4 * blocks[0] onwards: uint32 [B] -> fp32 [4 * B]."""
    k0 = tl.load(key).to(tl.uint32)
    k1 = tl.load(key + 1).to(tl.uint32)
    zero = tl.zeros_like(blocks)
    c0 = blocks | (layer.to(tl.uint32) << 20)
    c1 = zero + position.to(tl.uint32)
    c2 = zero + sample_id.to(tl.uint32)
    c3 = zero + (sample_id >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    z0, z1 = _pair(c0, c1)
    z2, z3 = _pair(c2, c3)
    return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))


@triton.jit(do_not_specialize=["layer", "channel_start"])
def _fill(key, layer, sample_ids, positions, channel_start, out, h, TILE: tl.constexpr):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    sample_id, position = tl.load(sample_ids + row), tl.load(positions + row)
    first = channel_start // 4 + tile * TILE
    z = _normals(key, layer, sample_id, position, (first + tl.arange(0, TILE)).to(tl.uint32))
    column = 4 * first + tl.arange(0, 4 * TILE) - channel_start
    z = tl.where(sample_id < 0, 0.0, z)
    tl.store(out + row * h + column, z, mask=(column >= 0) & (column < h))


@triton.jit(do_not_specialize=["layer"])
def _add(key, layer, sample_ids, positions, hidden, scale, out, changed, h, TILE: tl.constexpr):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    sample_id, position = tl.load(sample_ids + row), tl.load(positions + row)
    first = tile * TILE
    column = 4 * first + tl.arange(0, 4 * TILE)
    mask = column < h
    before = tl.load(hidden + row * h + column, mask=mask, other=0.0)
    z = _normals(key, layer, sample_id, position, (first + tl.arange(0, TILE)).to(tl.uint32))
    after = (before.to(tl.float32) + tl.load(scale + row) * z).to(before.dtype)
    after = tl.where(sample_id < 0, before, after)
    tl.store(out + row * h + column, after, mask=mask)
    differ = mask & (after != before)
    tl.atomic_add(changed, tl.sum(differ.to(tl.int32), axis=0).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["layer"])
def _dot(key, layer, sample_ids, positions, grad, out, h, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    sample_id, position = tl.load(sample_ids + row), tl.load(positions + row)
    total = tl.zeros([4 * TILE], dtype=tl.float64)
    for first in range(0, tl.cdiv(h, 4), TILE):
        column = 4 * first + tl.arange(0, 4 * TILE)
        g = tl.load(grad + row * h + column, mask=column < h, other=0.0)
        z = _normals(key, layer, sample_id, position, (first + tl.arange(0, TILE)).to(tl.uint32))
        total += g.to(tl.float64) * z.to(tl.float64)
    tl.store(out + row, tl.where(sample_id < 0, 0.0, tl.sum(total, axis=0)))


def fill(key, layer, sample_ids, positions, channel_start, out) -> None:
    """Sets out [n, h] fp32 = z, from channel_start on; rows with a negative sample id get 0."""
    n, h = out.shape
    blocks = (channel_start + h + 3) // 4 - channel_start // 4
    tile, grid = _tiles(n, blocks)
    sample_ids, positions = sample_ids.contiguous(), positions.contiguous()
    with torch.cuda.device_of(out):
        _fill[grid](key, layer, sample_ids, positions, channel_start, out, h, TILE=tile)


def add(key, layer, sample_ids, positions, hidden, scale, out, changed) -> None:
    """Sets out [n, h] = hidden + scale[row] * z, summed in fp32, rounded once to out's dtype.

    scale is fp32 [n]; changed, int64 [], grows by the number of elements that differ from
    hidden after the rounding. Rows with a negative sample id are copied.
    """
    assert hidden.dtype == out.dtype and out.is_contiguous()
    n, h = hidden.shape
    tile, grid = _tiles(n, (h + 3) // 4)
    rows = (sample_ids.contiguous(), positions.contiguous(), hidden.contiguous())
    with torch.cuda.device_of(out):
        _add[grid](key, layer, *rows, scale, out, changed, h, TILE=tile)


def dot(key, layer, sample_ids, positions, grad) -> torch.Tensor:
    """Returns sum_c grad[row, c] * z[row, c], float64 [n]; 0 for a negative sample id."""
    n, h = grad.shape
    out = torch.empty(n, dtype=torch.float64, device=grad.device)
    tile, _ = _tiles(n, (h + 3) // 4)
    rows = (sample_ids.contiguous(), positions.contiguous(), grad.contiguous())
    with torch.cuda.device_of(out):
        _dot[(n,)](key, layer, *rows, out, h, TILE=tile)
    return out


def _tiles(n: int, blocks: int) -> tuple[int, tuple[int, int]]:
    """Blocks of four channels per program, and the grid (rows, tiles)."""
    tile = min(_TILE, triton.next_power_of_2(blocks))
    return tile, (n, triton.cdiv(blocks, tile))
