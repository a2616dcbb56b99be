"""FP8 rounding and scales against tables and float64 formulae that are written here."""

import numpy as np
import pytest
import torch

from alp_megatron.fp8.rounding import (
    E4M3,
    E5M2,
    e8m0_scale,
    encode,
    float32_scale,
    power_of_two_scale,
    round_columns,
    round_rows,
    round_squares,
    round_trip,
)
from tests.support.fp8_reference import TABLES, floor_power, nearest_codes, rounded_blocks

ONE = torch.ones(())


def awkward_values(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Random fp32 over all of the format's range and beyond, its numbers, the midpoints between
    them and their neighbours, zeros, infinities, NaN, fp32's extremes."""
    rng = np.random.default_rng(5)
    spread = rng.standard_normal(count) * 2.0 ** rng.uniform(-30, 20, count)
    table = TABLES[dtype]
    middles = (table[1:] + table[:-1]) / 2
    points = np.concatenate([table, middles]).astype(np.float32)
    points = np.concatenate([points, np.nextafter(points, 0), np.nextafter(points, np.inf)])
    special = np.array([0.0, np.inf, np.nan, 3.4e38, 1e-45, 448.0, 464.0, 480.0, 57344.0, 61440.0])
    values = np.concatenate([points, -points, special, -special]).astype(np.float32)
    return torch.from_numpy(np.concatenate([spread.astype(np.float32), values]))


def check_casts(count: int, dtype: torch.dtype) -> None:
    values = awkward_values(count, dtype)
    codes = encode(values, ONE, dtype)
    np.testing.assert_array_equal(
        codes.view(torch.uint8).numpy() & _nan_mask(values),
        nearest_codes(values.numpy(), dtype) & _nan_mask(values),
    )
    # torch's own cast, where it does not overflow
    inside = values[values.abs() <= torch.finfo(dtype).max]
    assert torch.equal(
        encode(inside, ONE, dtype).view(torch.uint8), inside.to(dtype).view(torch.uint8)
    )
    assert torch.equal(codes.float().isnan(), values.isnan())


def _nan_mask(values: torch.Tensor) -> np.ndarray:
    """Any code of NaN will do, and its sign has no meaning."""
    return np.where(np.isnan(values.numpy()), 0x7C, 0xFF).astype(np.uint8)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_casts_are_to_the_nearest_number_of_the_format(dtype):
    check_casts(300_000, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_casts_of_ten_million_values(dtype):
    check_casts(10_000_000, dtype)


def amaxes() -> torch.Tensor:
    rng = np.random.default_rng(6)
    spread = 2.0 ** rng.uniform(-100, 100, 20_000)
    # 448 and 57344 times powers of two: where a power-of-two scale changes, and their neighbours
    edges = np.array([m * 2.0**e for m in (448, 57344, 1) for e in range(-40, 40)], np.float32)
    near = [edges, np.nextafter(edges, 0), np.nextafter(edges, np.float32(np.inf))]
    return torch.from_numpy(np.concatenate([spread, *near]).astype(np.float32))


@pytest.mark.parametrize("dtype, limit", [(E4M3, 448.0), (E5M2, 57344.0)])
def test_scales_equal_float64(dtype, limit):
    amax = amaxes()
    exact = limit / amax.numpy().astype(np.float64)
    assert np.array_equal(float32_scale(amax, dtype).numpy(), exact.astype(np.float32))
    # of the fp32 quotient, as Transformer Engine's kernel takes the mantissa off
    below = 2.0 ** np.floor(np.log2(exact.astype(np.float32).astype(np.float64)))
    assert np.array_equal(power_of_two_scale(amax, dtype).numpy(), below.astype(np.float32))
    mantissa, exponent = np.frexp((amax.numpy() * np.float32(1 / limit)).astype(np.float64))
    least = np.where(mantissa == 0.5, exponent - 1, exponent)
    assert np.array_equal(e8m0_scale(amax, dtype).numpy(), (2.0**-least).astype(np.float32))
    # and what it is for: nothing is scaled beyond the largest number, by less than one rounding
    scaled = amax.double() * e8m0_scale(amax, dtype).double()
    assert (scaled <= limit * (1 + 2**-23)).all() and (scaled > limit / 2 * (1 - 2**-23)).all()


@pytest.mark.parametrize("rule", [float32_scale, power_of_two_scale, e8m0_scale])
def test_no_scale_is_made_of_nothing(rule):
    amax = torch.tensor([0.0, float("inf"), float("nan")])
    assert torch.equal(rule(amax, E4M3), torch.ones(3))
    tiny = rule(torch.tensor([1e-45, 1e-38]), E4M3)
    assert tiny.isfinite().all() and (tiny > 1e37).all()


@pytest.mark.parametrize(
    "ours, block",
    [
        (lambda m: round_rows(m, 128, E4M3, power_of_two_scale), (1, 128)),
        (lambda m: round_columns(m, 128, E4M3, power_of_two_scale), (128, 1)),
        (lambda m: round_squares(m, 128, E4M3, power_of_two_scale), (128, 128)),
        (lambda m: round_rows(m, 32, E4M3, e8m0_scale), (1, 32)),
        (lambda m: round_columns(m, 32, E4M3, e8m0_scale), (32, 1)),
    ],
)
@pytest.mark.parametrize("shape", [(256, 128), (150, 200)])
def test_blocks_equal_float64(ours, block, shape):
    rng = np.random.default_rng(7)
    matrix = (rng.standard_normal(shape) * 2.0 ** rng.uniform(-9, 9, shape)).astype(np.float32)
    expected = rounded_blocks(matrix, *block, E4M3, floor_power)
    np.testing.assert_array_equal(ours(torch.from_numpy(matrix)).numpy(), expected)


def test_tensorwise_rounding_by_hand():
    values = torch.tensor([2.0, -1.0, 0.013, 0.0])
    rounded = round_trip(values, float32_scale(values.abs().amax(), E4M3), E4M3)
    # scale 224: 448, -224, 2.912 -> 3.0 (steps of 0.25: 2.75, 3.0), 0
    assert rounded.tolist() == pytest.approx([2.0, -1.0, 3.0 / 224, 0.0], rel=1e-6)
