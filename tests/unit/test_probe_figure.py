import numpy as np
import pytest

from alp_megatron.metrics.tokens import TokenRatios
from alp_megatron.studies.probe.figure import draw_figure, merged, width_by_update

EDGES = np.array([-4.0, -3.0, -2.0, -1.0, 0.0])


def test_bins_are_joined_until_every_group_fills_them():
    one = np.array([-0.5, -0.2, -1.5, -2.5, -3.5])
    other = np.array([-0.5, -1.5, -1.6, -2.5, -3.5])
    # From 0 on: [-1, 0] has one of the other group, so it takes in [-2, -1]; then two bins more.
    assert merged(EDGES, [one, other], fewest=2).tolist() == [-4, -2, 0]
    assert merged(EDGES, [one, other], fewest=1).tolist() == [-4, -3, -2, -1, 0]
    # What is left at the lower end joins the last bin made.
    assert merged(EDGES, [one[:4], other[:4]], fewest=1).tolist() == [-4, -2, -1, 0]
    assert merged(EDGES, [one, other], fewest=9).tolist() == [-4, 0]
    assert merged(EDGES, [np.zeros(0)], fewest=1).tolist() == [-4, 0]


def ratios(noise: float, updates=(0, 1, 2)) -> TokenRatios:
    rng = np.random.default_rng(0)
    update = np.repeat(np.array(updates, np.int32), 101)
    rollout = np.full(len(update), -1.0, np.float32)
    # The log ratios of update u are 0, 0.01 (u + 1), ..., u + 1: their P98 - P2 is 0.96 (u + 1).
    clean = rollout + np.tile(np.arange(101) / 100, len(updates)) * (update + 1)
    perturbed = clean + noise * rng.standard_normal(len(update))
    values = (v.astype(np.float32) for v in (rollout, clean, perturbed))
    return TokenRatios(np.arange(len(update)), update, *values)


def test_the_width_at_each_update():
    updates, widths = width_by_update(ratios(0.0, (0, 2)), "clean")
    assert updates.tolist() == [0, 2]
    assert widths == pytest.approx([0.96, 2.88], abs=1e-5)


@pytest.mark.parametrize("updates", [(0, 1, 2), ()])
def test_a_picture_of_every_method(updates):
    """Also where all updates of a method were skipped, so that it has no token."""
    png = draw_figure({"bypass": ratios(0.0), "alp": ratios(0.5, updates)})
    assert png[:4] == b"\x89PNG" and len(png) > 20_000
