"""Implements the noise kernels for CPU, compiled by numba; `philox.py` says what they compute.

Each row's normals are made in a scratch row that stays in cache, by one function that the
three kernels share, so their bits agree. Its two loops are split because LLVM takes the
vector width from the widest type: 4 lanes for the 64-bit products, 8 for the normals. Apart
from the dot product's sum no fast-math is used, so that vector and remainder lanes, and
machines with and without FMA, round alike.

Rows are copied by loops, since numba takes seconds to compile an assignment to a slice.
Constants stay in this file: numba's cache is renewed when this file changes, and no other.
"""

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
_inlined = numba.njit(error_model="numpy", forceinline=True)

f32, i32, i64 = np.float32, np.int32, np.int64
u16, u32, u64 = np.uint16, np.uint32, np.uint64
_M0, _M1 = u64(0xD2511F53), u64(0xCD9E8D57)
_W0, _W1 = u64(0x9E3779B9), u64(0xBB67AE85)
_LOW, _HALF = u64(0xFFFFFFFF), u64(32)


@intrinsic
def _float_bits(typingctx, x):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def _from_bits(typingctx, x):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@_inlined
def _philox(c0, c1, c2, c3, k0, k1):
    """Four words held in uint64, as the vector multiply 32 x 32 -> 64 wants them."""
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@_inlined
def _radius(x):
    """sqrt(-2 log u) of the word x; the polynomial is that of Cephes' logf."""
    t = f32(x) + f32(0.5)
    # t = 2**e * m with m in [sqrt(1/2), sqrt(2)): 0x3F3504F3 is sqrt(1/2).
    e = i32(i32(_float_bits(t) - u32(0x3F3504F3)) >> i32(23))
    f = _from_bits(u32(_float_bits(t) - u32(u32(e) << u32(23)))) - f32(1)
    p = f32(7.0376836292e-2)
    p = p * f + f32(-1.1514610310e-1)
    p = p * f + f32(1.1676998740e-1)
    p = p * f + f32(-1.2420140846e-1)
    p = p * f + f32(1.4249322787e-1)
    p = p * f + f32(-1.6668057665e-1)
    p = p * f + f32(2.0000714765e-1)
    p = p * f + f32(-2.4999993993e-1)
    p = p * f + f32(3.3333331174e-1)
    exponent = f32(i32(e - i32(32)))
    square = f * f
    log = p * f * square + exponent * f32(-2.12194440e-4)
    log = log - f32(0.5) * square
    log = (log + f) + exponent * f32(0.693359375)
    return np.sqrt(f32(-2) * log)


@_inlined
def _pair(x, y):
    """Box-Muller on two words; sine and cosine by Cephes' polynomials on [-pi/4, pi/4]."""
    r = _radius(x)
    # y less its nearest quarter turn, in 2**-34 turns: the wrap to int32 is the reduction.
    a = f32(i32(u32((y << u32(2)) | u32(2)))) * f32(np.pi / 4 * 2.0**-31)
    q = a * a
    sin = (f32(-1.9515295891e-4) * q + f32(8.3321608736e-3)) * q + f32(-1.6666654611e-1)
    sin = sin * q * a + a
    cos = (f32(2.4433157118e-5) * q + f32(-1.3887316255e-3)) * q + f32(4.1666645683e-2)
    cos = cos * q * q - f32(0.5) * q + f32(1)
    quarter = u32(y + u32(1 << 29))  # its two top bits count the quarter turns
    odd = (quarter & u32(1 << 30)) != u32(0)
    cos_sign = u32(u32(quarter + u32(1 << 30)) & u32(1 << 31))
    sin_sign = u32(quarter & u32(1 << 31))
    z0 = _from_bits(u32(_float_bits(f32(r * (sin if odd else cos))) ^ cos_sign))
    z1 = _from_bits(u32(_float_bits(f32(r * (cos if odd else sin))) ^ sin_sign))
    return z0, z1


@_compiled
def _normals(key, layer, sample_id, position, first_block, words, z):
    """Fills z [4 * blocks] with a row's normals from first_block on; words [4, blocks]."""
    k0, k1 = u64(key[0]), u64(key[1])
    base = (u64(layer) << u64(20)) + u64(first_block)
    c1, c2, c3 = u64(position) & _LOW, u64(sample_id) & _LOW, u64(sample_id) >> _HALF
    for b in range(words.shape[1]):
        w0, w1, w2, w3 = _philox(base + u64(b), c1, c2, c3, k0, k1)
        words[0, b], words[1, b], words[2, b], words[3, b] = u32(w0), u32(w1), u32(w2), u32(w3)
    for b in range(words.shape[1]):
        z0, z1 = _pair(words[0, b], words[1, b])
        z2, z3 = _pair(words[2, b], words[3, b])
        z[4 * b], z[4 * b + 1], z[4 * b + 2], z[4 * b + 3] = z0, z1, z2, z3


@_compiled
def _fill(key, layer, sample_ids, positions, channel_start, out):
    n, h = out.shape
    first = channel_start // 4
    words = np.empty((4, (channel_start + h + 3) // 4 - first), np.uint32)
    z = np.empty(words.size, np.float32)
    ours = z[channel_start - 4 * first :]
    for i in range(n):
        if sample_ids[i] < 0:
            for c in range(h):
                out[i, c] = f32(0)
            continue
        _normals(key, layer, sample_ids[i], positions[i], first, words, z)
        for c in range(h):
            out[i, c] = ours[c]


@_compiled
def _add(key, layer, sample_ids, positions, hidden, scale, out):
    n, h = hidden.shape
    words = np.empty((4, (h + 3) // 4), np.uint32)
    z = np.empty(words.size, np.float32)
    changed = 0
    for i in range(n):
        if sample_ids[i] < 0:
            for c in range(h):
                out[i, c] = hidden[i, c]
            continue
        _normals(key, layer, sample_ids[i], positions[i], i64(0), words, z)
        in_row = i32(0)
        for c in range(h):
            value = hidden[i, c] + scale[i] * z[c]
            out[i, c] = value
            in_row += i32(value != hidden[i, c])
        changed += in_row
    return changed


@_compiled
def _add_bf16(key, layer, sample_ids, positions, hidden, scale, out):
    """`_add` on bfloat16 held as uint16; numba has no such type, and torch's casts cost more."""
    n, h = hidden.shape
    words = np.empty((4, (h + 3) // 4), np.uint32)
    z = np.empty(words.size, np.float32)
    changed = 0
    for i in range(n):
        if sample_ids[i] < 0:
            for c in range(h):
                out[i, c] = hidden[i, c]
            continue
        _normals(key, layer, sample_ids[i], positions[i], i64(0), words, z)
        in_row = i32(0)
        for c in range(h):
            value = _from_bits(u32(u32(hidden[i, c]) << u32(16))) + scale[i] * z[c]
            bits = _float_bits(value)
            # To nearest, ties to even: add half a unit, less one where the kept part is even.
            half = u32(u32(0x7FFF) + u32(u32(bits >> u32(16)) & u32(1)))
            rounded = u16(u32(bits + half) >> u32(16))
            out[i, c] = rounded
            in_row += i32(rounded != hidden[i, c])
        changed += in_row
    return changed


@numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def _row_dot(a, b):
    """Multiplies in float64; reassociation lets it vectorise, the same way at every call."""
    total = 0.0
    for c in range(a.size):
        total += np.float64(a[c]) * np.float64(b[c])
    return total


@_compiled
def _dot(key, layer, sample_ids, positions, grad, out):
    n, h = grad.shape
    words = np.empty((4, (h + 3) // 4), np.uint32)
    z = np.empty(words.size, np.float32)
    for i in range(n):
        if sample_ids[i] < 0:
            out[i] = 0.0
            continue
        _normals(key, layer, sample_ids[i], positions[i], i64(0), words, z)
        out[i] = _row_dot(grad[i], z[:h])


def fill(key, layer, sample_ids, positions, channel_start, out) -> None:
    """Sets out [n, h] fp32 = z, from channel_start on; rows with a negative sample id get 0."""
    _fill(_array(key), layer, _array(sample_ids), _array(positions), channel_start, out.numpy())


def add(key, layer, sample_ids, positions, hidden, scale, out, changed) -> None:
    """Sets out [n, h] = hidden + scale[row] * z, summed in fp32, rounded once to out's dtype.

    scale is fp32 [n]; changed, int64 [], grows by the number of elements that differ from
    hidden after the rounding. Rows with a negative sample id are copied.
    """
    assert hidden.dtype == out.dtype and hidden.dtype in (torch.float32, torch.bfloat16)
    rows = (_array(key), layer, _array(sample_ids), _array(positions))
    if hidden.dtype == torch.float32:
        changed += _add(*rows, _array(hidden), _array(scale), out.numpy())
    else:
        hidden, out = hidden.view(torch.uint16), out.view(torch.uint16)
        changed += _add_bf16(*rows, _array(hidden), _array(scale), out.numpy())


def dot(key, layer, sample_ids, positions, grad) -> torch.Tensor:
    """Returns sum_c grad[row, c] * z[row, c], float64 [n]; 0 for a negative sample id."""
    out = torch.empty(len(grad), dtype=torch.float64)
    rows = (_array(key), layer, _array(sample_ids), _array(positions))
    _dot(*rows, _array(grad.float()), out.numpy())
    return out


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()
