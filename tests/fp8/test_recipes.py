"""The delayed recipe's memory, by hand."""

import pytest
import torch

from alp_megatron.fp8.recipes import GRADIENT, INPUT, AmaxHistory, AmaxMeter
from alp_megatron.fp8.rounding import E4M3, E5M2


def number(value: float) -> torch.Tensor:
    return torch.tensor(value)


@pytest.mark.parametrize(
    "algorithm, expected", [("max", [8.0, 8.0, 2.0]), ("most_recent", [8, 2, 1])]
)
def test_scales_follow_the_history(algorithm, expected):
    """Amaxes 8, 2, 1 with a history of two: the scale after each is 448 over `expected`."""
    history = AmaxHistory(2, algorithm, margin=0)
    assert history.scale(INPUT, number(4.0), E4M3) == 112.0  # of its own amax: there is no history
    for amax, used in zip([8.0, 2.0, 1.0], expected, strict=True):
        history.record(INPUT, number(amax), E4M3)
        assert history.scale(INPUT, number(1000.0), E4M3) == 448.0 / used
    assert history.amaxes[:, INPUT].tolist() == [1.0, 2.0]
    assert history.amaxes[:, GRADIENT].tolist() == [0.0, 0.0]


def test_margin_and_amaxes_that_make_no_scale():
    history = AmaxHistory(4, "max", margin=1)
    history.record(GRADIENT, number(7.0), E5M2)
    for useless in (0.0, float("inf"), float("nan")):
        history.record(GRADIENT, number(useless), E5M2)
    assert history.scale(GRADIENT, number(1.0), E5M2) == 57344 / 7 / 2
    assert history.amaxes[:, GRADIENT].tolist() == [7.0, 0.0, 0.0, 0.0]


def test_buffers_are_saved_and_stay_fp32():
    history = AmaxHistory(3, "max", margin=0)
    history.record(INPUT, number(0.1234567), E4M3)
    before = {name: tensor.clone() for name, tensor in history.state_dict().items()}
    assert set(before) == {"amaxes", "scales"}
    history.bfloat16()
    assert all(torch.equal(t, before[name]) for name, t in history.state_dict().items())


def test_the_meter_keeps_peaks_until_they_are_taken():
    meter = AmaxMeter()
    meter.see(INPUT, number(2.0), number(448.0), E4M3)  # twice what the scale can hold
    meter.see(INPUT, number(3.0), None, E4M3)
    assert meter.take().tolist() == [[3.0, 0.0, 0.0], [2.0, 0.0, 0.0]]
    assert meter.take().sum() == 0
