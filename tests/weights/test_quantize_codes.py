"""Codes and scales, bit by bit, against float64 arithmetic and against compressed-tensors' own."""

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams

from alp_megatron.weights.quantize.codes import (
    pack_int4,
    quantize_fp8,
    quantize_fp8_blocks,
    quantize_int4,
    quantize_int8,
)

GROUP = 32
SHAPES = [(1, 32), (3, 96), (127, 160), (128, 128), (130, 288), (257, 384)]
RAGGED = [(1, 1), (5, 3), (129, 131), (300, 127)]  # int4 packs eight: it takes none of these


def edge_cases(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Rows of every magnitude; rows, blocks and groups of zeros; both zeros; exact ties."""
    generator = torch.Generator().manual_seed(shape[0])
    n, k = shape
    weight = torch.randn(shape, generator=generator)
    weight *= torch.logspace(-3, 3, n)[torch.randperm(n, generator=generator)][:, None]
    weight[::7] = 0
    weight[1::7] *= -0.0
    weight[2::7] = torch.arange(k) / 2 - 7  # halves: between two codes where the scale is 1
    weight[2::7, 0] = 127.5
    weight[3::7, :GROUP] = 0
    weight[4::7] *= 1e35
    weight[5::7] *= 1e-43  # subnormal, and so are the scales
    weight[6::7, -1] = 3e38
    weight[-1] = -1e-30
    return weight.to(dtype)


def every(shapes: list[tuple[int, int]]):
    return [(shape, dtype) for shape in shapes for dtype in (torch.float32, torch.bfloat16)]


def rounded(x: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """float64 -> the dtype -> float64. From float64 to bfloat16 directly: no float32 between."""
    return torch.from_numpy(np.ascontiguousarray(x)).to(dtype).double().numpy()


def scales_of(largest: np.ndarray, steps: float) -> np.ndarray:
    scales = rounded(largest / steps)
    return np.where(scales == 0, 2.0**-23, scales)


# e4m3 without infinities: 7 is the exponent's bias, S.1111.111 is not a number.
E4M3 = np.array([m * 2.0**-9 for m in range(8)] + [
    (1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)
][:-1])  # fmt: skip


def e4m3_codes(x: np.ndarray) -> np.ndarray:
    """The byte of the nearest number; of two as near, the one with the even byte."""
    size = np.minimum(np.abs(x), 448)
    above = np.searchsorted(E4M3, size)
    below = np.maximum(above - 1, 0)
    up, down = E4M3[above] - size, size - E4M3[below]
    nearest = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return nearest + 128 * np.signbit(x)


def spread(scales: np.ndarray, rows: int, columns: int, shape: tuple[int, int]) -> np.ndarray:
    return np.kron(scales, np.ones((rows, columns)))[: shape[0], : shape[1]]


def same(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and np.array_equal(ours.double().numpy(), theirs)


@pytest.mark.parametrize(("shape", "dtype"), every(SHAPES + RAGGED))
def test_int8(shape, dtype):
    weight = edge_cases(shape, dtype)
    codes, scales = quantize_int8(weight)
    assert codes.dtype == torch.int8 and scales.dtype == torch.float32
    exact = weight.double().numpy()
    expected = scales_of(np.abs(exact).max(1, keepdims=True), 127.5)
    assert same(scales, expected)
    assert same(codes, np.rint(rounded(exact / expected)).clip(-128, 127))
    off = np.abs(codes.numpy() * expected - exact) / expected
    assert off[expected[:, 0] > 1e-35].max() < 0.5001


@pytest.mark.parametrize(("shape", "dtype"), every(SHAPES + RAGGED))
def test_fp8(shape, dtype):
    weight = edge_cases(shape, dtype)
    codes, scales = quantize_fp8(weight)
    assert codes.dtype == torch.float8_e4m3fn and scales.dtype == torch.float32
    exact = weight.double().numpy()
    expected = scales_of(np.abs(exact).max(1, keepdims=True), 448)
    assert same(scales, expected)
    assert same(codes.view(torch.uint8), e4m3_codes(rounded(exact / expected)))


@pytest.mark.parametrize(("shape", "dtype"), every(SHAPES + RAGGED))
def test_fp8_block(shape, dtype):
    weight = edge_cases(shape, dtype)
    codes, scales = quantize_fp8_blocks(weight)
    exact = weight.double().numpy()
    tall, wide = (-(-size // 128) for size in shape)
    blocks = [
        [np.abs(exact[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128]).max() for j in range(wide)]
        for i in range(tall)
    ]
    expected = scales_of(np.array(blocks), 448)
    assert same(scales, expected) and scales.dtype == torch.float32
    quotient = rounded(exact / spread(expected, 128, 128, shape))
    assert same(codes.view(torch.uint8), e4m3_codes(quotient))


@pytest.mark.parametrize(("shape", "dtype"), every(SHAPES))
def test_int4(shape, dtype):
    weight = edge_cases(shape, dtype)
    codes, scales = quantize_int4(weight, GROUP)
    assert codes.dtype == torch.int8 and scales.dtype == dtype
    exact = weight.double().numpy()
    largest = np.abs(exact).reshape(shape[0], -1, GROUP).max(2)
    expected = rounded(rounded(largest / 7.5), dtype)
    expected = np.where(expected == 0, 2.0**-23, expected)
    assert same(scales, expected)
    quotient = rounded(exact / spread(expected, 1, GROUP, shape))
    assert same(codes, np.rint(quotient).clip(-8, 7))
    assert torch.equal(pack_int4(codes), pack_to_int32(codes, 4))


COMPRESSED_TENSORS = {
    "int8": dict(num_bits=8, type="int", strategy="channel"),
    "fp8": dict(num_bits=8, type="float", strategy="channel"),
    "fp8_block": dict(num_bits=8, type="float", strategy="block", block_structure=[128, 128]),
    "int4": dict(num_bits=4, type="int", strategy="group", group_size=GROUP),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quantization", COMPRESSED_TENSORS)
def test_as_compressed_tensors(quantization, shape):
    """It computes in the weight's dtype, so that only float32 compares."""
    if quantization == "fp8_block" and (shape[0] % 128 or shape[1] % 128):
        shape = (256, 384)  # it takes whole blocks only
    weight = edge_cases(shape, torch.float32)
    args = QuantizationArgs(**COMPRESSED_TENSORS[quantization])
    n, k = shape
    if quantization == "fp8_block":
        parts = weight.view(n // 128, 128, k // 128, 128)
        low, high = parts.amin((1, 3)), parts.amax((1, 3))
        ours = quantize_fp8_blocks(weight)
    elif quantization == "int4":
        parts = weight.view(n, k // GROUP, GROUP)
        low, high = parts.amin(2), parts.amax(2)
        ours = quantize_int4(weight, GROUP)
    else:
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        ours = {"int8": quantize_int8, "fp8": quantize_fp8}[quantization](weight)
    scales, zero_points = calculate_qparams(low, high, args)
    codes = quantize(weight, scales, zero_points, args, dtype=ours[0].dtype)
    assert torch.equal(ours[1], scales)
    # Its codes of -0 and of what rounds to 0 from below may be +0: the same number.
    assert torch.equal(ours[0].float(), codes.float())
