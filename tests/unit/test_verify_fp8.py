"""The first sync's check of weights that the trainer holds in FP8."""

from types import SimpleNamespace

import pytest
import torch

from alp_megatron.fp8.rounding import float32_scale, power_of_two_scale, round_rows, round_squares
from alp_megatron.weights.verify import SyncError, check_rounded_against_checkpoint
from tests.fp8_reference import E4M3

NAME = "model.layers.0.mlp.up_proj.weight"


def weight() -> torch.Tensor:
    """Sizes over six orders of magnitude: also what E4M3 rounds to its smallest numbers and 0."""
    generator = torch.Generator().manual_seed(1)
    sizes = 10 ** torch.empty(256, 384).uniform_(-6, 0, generator=generator)
    return torch.randn(256, 384, generator=generator) * sizes


def check(exported: torch.Tensor) -> None:
    base = SimpleNamespace(tensor={NAME: weight()}.__getitem__, model_dir="base")
    check_rounded_against_checkpoint(NAME, exported, base)


@pytest.mark.parametrize("size, rule", [(384, float32_scale), (128, power_of_two_scale)])
def test_rounding_passes(size, rule):
    rounding = round_squares if size == 128 else round_rows
    rounded = rounding(weight(), size, E4M3, rule)
    assert (rounded == 0).any() and (rounded != weight()).any()
    check(rounded)
    check(rounded.bfloat16())


@pytest.mark.parametrize("spoilt", [lambda w: w.flip(0), lambda w: w * 1.08, lambda w: w + 1e-4])
def test_more_than_rounding_is_told_by_name(spoilt):
    with pytest.raises(SyncError, match=f"tensor {NAME} as exported by the trainer differs"):
        check(spoilt(weight()))


def test_one_element_is_enough():
    exported = weight()
    exported[17, 300] = float("nan")
    with pytest.raises(SyncError, match=NAME):
        check(exported)
