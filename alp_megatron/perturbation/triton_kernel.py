"""Implements the noise kernels for CUDA, in Triton; `philox.py` says what they compute.

The integers are those of the CPU kernels; the normals agree to 1e-6, since a GPU may fuse
multiplications and additions. The key is read from device memory and nothing waits for the
host, so a CUDA graph can capture the launches and later replay them under another key.
"""

import torch
import triton
import triton.language as tl

# A program has 128 threads and handles tiles of as many blocks of four channels: where a thread
# has one block at a time, nothing is exchanged between threads.
_BLOCKS = tl.constexpr(128)
_TILES = range(4, 9)  # of a program, if so many divide a row's: fewer repeat what a row shares


@triton.jit
def _radius(x):
    """sqrt(-2 log u) of the word x; log is a polynomial fitted to sqrt(1/2) up to sqrt(2)."""
    u = x.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    bits = u.to(tl.int32, bitcast=True)
    # u = 2**e * m: 0x3F3504F3 is sqrt(1/2), and `exponent` is e * 2**23.
    exponent = (bits - 0x3F3504F3) & -0x800000
    f = (bits - exponent).to(tl.float32, bitcast=True) * 2.0 - 2.0
    p = f * 0.0007998461625008534 - 0.002554108986681025
    p = p * f + 0.00539186773218225
    p = p * f - 0.012427313291539425
    p = p * f + 0.031210753645254694
    p = p * f - 0.08333884480824973
    p = p * f + 0.2500018798345309
    return tl.sqrt(exponent.to(tl.float32) * -1.6525916589735634e-07 + (p * (f * f) - f))


@triton.jit
def _pair(x, y):
    """Box-Muller on two words; sine and cosine are polynomials fitted to [-pi/4, pi/4]."""
    r = _radius(x)
    # y less its nearest quarter turn, in 2**-34 turns: the wrap to int32 is the reduction.
    a = (y * 4 + 2).to(tl.int32, bitcast=True).to(tl.float32) * 3.6572951981495367e-10
    q = a * a
    sin = (q * -0.0001949563613469192 + 0.008331978662167002) * q - 0.1666665066927155
    sin = sin * (q * a) + a
    cos = (q * 2.439045064232571e-05 - 0.0013886763793591569) * q + 0.04166662332431348
    cos = (cos * q - 0.4999999972510785) * q + 1.0
    # The quarter turns that the reduction took away are the two upper bits of `turns`.
    turns = y + 0x20000000
    odd = (turns & 0x40000000) != 0
    z0 = r * tl.where(odd, sin, cos)
    z1 = r * tl.where(odd, cos, sin)
    return _negated(z0, turns + 0x40000000), _negated(z1, turns)


@triton.jit
def _negated(z, turns):
    """-z where the upper bit of turns is set."""
    return (z.to(tl.uint32, bitcast=True) ^ (turns & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _product(word, factor):
    """The upper and the lower half of a product of two uint32: one instruction, where plain
    operations make three."""
    return tl.inline_asm_elementwise(
        "{ .reg .b64 p; mul.wide.u32 p, $2, $3; mov.b64 {$1, $0}, p; }",
        "=r,=r,r,r",
        [word, factor],
        dtype=(tl.uint32, tl.uint32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _normals(k0, k1, layer, sample_id, position, blocks):
    """z of channels 4 * blocks[0] onwards: uint32 [B] -> fp32 [4 * B]."""
    zero = tl.zeros_like(blocks)
    c0 = blocks | (layer.to(tl.uint32) << 20)
    c1 = zero + position.to(tl.uint32)
    c2 = zero + sample_id.to(tl.uint32)
    c3 = zero + (sample_id >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = _product(c0, 0xD2511F53)
        high1, low1 = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    z0, z1 = _pair(c0, c1)
    z2, z3 = _pair(c2, c3)
    return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))


@triton.jit(do_not_specialize=["layer", "channel_start"])
def _fill(key, layer, sample_ids, positions, channel_start, out, h, TILES: tl.constexpr):
    row, tiles = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILES
    k0, k1 = tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32)
    sample_id, position = tl.load(sample_ids + row), tl.load(positions + row)
    for tile in tl.static_range(TILES):
        first = channel_start // 4 + (tiles + tile) * _BLOCKS
        z = _normals(
            k0, k1, layer, sample_id, position, (first + tl.arange(0, _BLOCKS)).to(tl.uint32)
        )
        column = 4 * first + tl.arange(0, 4 * _BLOCKS) - channel_start
        z = tl.where(sample_id < 0, 0.0, z)
        tl.store(out + row * h + column, z, mask=(column >= 0) & (column < h))


@triton.jit(do_not_specialize=["layer"])
def _add(
    key,
    layer,
    sample_ids,
    positions,
    hidden,
    scale,
    scale_stride,
    out,
    changed,
    h,
    TILES: tl.constexpr,
):
    row, tiles = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILES
    k0, k1 = tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32)
    sample_id, position = tl.load(sample_ids + row), tl.load(positions + row)
    sigma = tl.where(sample_id < 0, 0.0, tl.load(scale + row * scale_stride))
    differ = tl.zeros([4 * _BLOCKS], dtype=tl.int32)
    for tile in tl.static_range(TILES):
        first = (tiles + tile) * _BLOCKS
        column = 4 * first + tl.arange(0, 4 * _BLOCKS)
        mask = column < h
        before = tl.load(hidden + row * h + column, mask=mask, other=0.0)
        z = _normals(
            k0, k1, layer, sample_id, position, (first + tl.arange(0, _BLOCKS)).to(tl.uint32)
        )
        after = (before.to(tl.float32) + sigma * z).to(before.dtype)
        tl.store(out + row * h + column, after, mask=mask)
        differ += (mask & (after != before)).to(tl.int32)
    tl.atomic_add(changed, tl.sum(differ, axis=0).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["layer"])
def _dot(key, layer, sample_ids, positions, grad, out, h):
    row = tl.program_id(0).to(tl.int64)
    k0, k1 = tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32)
    sample_id, position = tl.load(sample_ids + row), tl.load(positions + row)
    total = tl.zeros([_BLOCKS], dtype=tl.float64)
    for first in range(0, tl.cdiv(h, 4), _BLOCKS):
        column = 4 * first + tl.arange(0, 4 * _BLOCKS)
        g = tl.load(grad + row * h + column, mask=column < h, other=0.0)
        z = _normals(
            k0, k1, layer, sample_id, position, (first + tl.arange(0, _BLOCKS)).to(tl.uint32)
        )
        # A block's four products are summed in fp32: conversions to fp64 are slow.
        products = tl.reshape(g.to(tl.float32) * z, [_BLOCKS, 4])
        total += tl.sum(products, axis=1).to(tl.float64)
    tl.store(out + row, tl.where(sample_id < 0, 0.0, tl.sum(total, axis=0)))


def fill(key, layer, sample_ids, positions, channel_start, out) -> None:
    """Sets out [n, h] fp32 = z, from channel_start on; rows with a negative sample id get 0."""
    n, h = out.shape
    blocks = (channel_start + h + 3) // 4 - channel_start // 4
    grid, tiles = _grid(n, blocks)
    sample_ids, positions = sample_ids.contiguous(), positions.contiguous()
    with torch.cuda.device_of(out):
        _fill[grid](key, layer, sample_ids, positions, channel_start, out, h, TILES=tiles)


def add(key, layer, sample_ids, positions, hidden, scale, out, changed) -> None:
    """Sets out [n, h] = hidden + scale[row] * z, summed in fp32, rounded once to out's dtype.

    scale is fp32 [n], of any stride; changed, int64 [], grows by the number of elements that
    differ from hidden after the rounding. Rows with a negative sample id keep their values (-0
    may become 0).
    """
    assert hidden.dtype == out.dtype and out.is_contiguous()
    n, h = hidden.shape
    grid, tiles = _grid(n, (h + 3) // 4)
    rows = (sample_ids.contiguous(), positions.contiguous(), hidden.contiguous())
    with torch.cuda.device_of(out):
        _add[grid](key, layer, *rows, scale, scale.stride(0), out, changed, h, TILES=tiles)


def dot(key, layer, sample_ids, positions, grad) -> torch.Tensor:
    """Returns sum_c grad[row, c] * z[row, c], float64 [n]; 0 for a negative sample id."""
    n, h = grad.shape
    out = torch.empty(n, dtype=torch.float64, device=grad.device)
    rows = (sample_ids.contiguous(), positions.contiguous(), grad.contiguous())
    with torch.cuda.device_of(out):
        _dot[(n,)](key, layer, *rows, out, h, num_warps=2)
    return out


def _grid(n: int, blocks: int) -> tuple[tuple[int, int], int]:
    """Returns the grid (rows, programs of a row) and how many tiles a program handles."""
    count = triton.cdiv(blocks, _BLOCKS.value)
    tiles = next((t for t in (*_TILES, 3, 2) if count % t == 0), 1)
    return (n, count // tiles), tiles
