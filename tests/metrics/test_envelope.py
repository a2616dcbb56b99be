"""Envelopes of tokens and responses, worked out by hand in fp64."""

import numpy as np
import pytest

from alp_megatron.metrics.envelope import (
    Bin,
    Points,
    by_staleness,
    envelope,
    envelope_edges,
    envelope_points,
)
from alp_megatron.metrics.tokens import TokenRatios
from alp_megatron.report.envelope_figures import draw_envelope, label_axes

# Values that float32 holds exactly. Response 7 has two tokens, 3 has one, 5 has three.
RATIOS = TokenRatios(
    sample_id=np.array([7, 7, 3, 5, 5, 5]),
    update=np.array([1, 1, 0, 1, 1, 1], np.int32),
    rollout_logprobs=np.array([-1, -0.5, -2, -0.25, -0.25, -1], np.float32),
    clean_logprobs=np.array([-1.5, -0.5, -1, -0.25, -0.5, -0.5], np.float32),
    perturbed_logprobs=np.array([-2, -0.5, -3, -0.25, -0.5, -0.75], np.float32),
)


def test_points_of_tokens():
    points = envelope_points(RATIOS, "clean", "token")
    assert points.x.tolist() == [-1, -0.5, -2, -0.25, -0.25, -1] and points.x.dtype == np.float64
    assert points.y.tolist() == [-0.5, 0, 1, 0, -0.25, 0.5]
    assert points.update.tolist() == [1, 1, 0, 1, 1, 1]


def test_points_of_responses():
    total = envelope_points(RATIOS, "perturbed", "sequence_sum")  # responses 3, 5, 7
    assert total.x.tolist() == [-2, -1.5, -1.5]
    assert total.y.tolist() == [-1, 0, -1]
    assert total.update.tolist() == [0, 1, 1]
    mean = envelope_points(RATIOS, "clean", "sequence_mean")
    assert mean.x.tolist() == [-2, -0.5, -0.75]
    assert mean.y.tolist() == pytest.approx([1, 0.25 / 3, -0.25], abs=1e-15)


def test_a_log_ratio_is_not_rounded_to_float32():
    near = np.float32(-1e-3)
    ratios = TokenRatios(
        sample_id=np.zeros(3, int),
        update=np.zeros(3, np.int32),
        rollout_logprobs=np.array([-30, -30, -30], np.float32),
        clean_logprobs=np.array([near, near, near], np.float32),
        perturbed_logprobs=np.zeros(3, np.float32),
    )
    assert envelope_points(ratios, "clean", "sequence_sum").y[0] == 3 * (float(near) + 30)


def points(level, x, y=None, update=None):
    x = np.asarray(x, dtype=np.float64)
    y = np.zeros_like(x) if y is None else np.asarray(y, dtype=np.float64)
    return Points(level, x, y, np.zeros(x.size, int) if update is None else np.asarray(update))


def test_tokens_get_fifty_bins_up_to_zero_that_all_runs_share():
    empty = points("token", [])
    edges = envelope_edges([points("token", [-1, -0.2]), empty, points("token", [-5, -0.1])])
    np.testing.assert_allclose(edges, np.arange(-50, 1) / 10, atol=1e-12)
    assert np.all(np.diff(envelope_edges([points("token", [0.0, 0.0])])) > 0)
    assert envelope(empty, envelope_edges([empty])) == []


def test_responses_get_bins_of_twenty_on_average_and_outliers_do_not_stretch_them():
    # 100 responses at -100, -99, ... -1: the tenth is at -91, the last but nine at -10.
    many, few = points("sequence_sum", np.arange(-100, 0)), points("sequence_sum", [-60, -50])
    np.testing.assert_allclose(envelope_edges([many, few]), np.linspace(-91, -10, 6))
    found = envelope(many, envelope_edges([many]))
    assert [b.count for b in found] == [26, 16, 16, 16, 26]  # nine of them beyond each end

    np.testing.assert_allclose(envelope_edges([few]), [-60, -50])

    def bins(size):
        return len(envelope_edges([points("sequence_mean", -np.arange(size) / 8)])) - 1

    assert [bins(size) for size in (3, 39, 40, 9999)] == [1, 1, 2, 50]


def test_an_envelope_of_responses_needs_ten_in_a_bin():
    # Edges -3, -2, -1: eleven responses in the first bin, nine in the second.
    x = [-3, -2.5, -2.001] + [-2.9] * 8 + [-2.0] + [-1.5] * 7 + [-1.0]
    y = [*range(11)] + [99] * 9
    (only,) = envelope(points("sequence_sum", x, y), np.array([-3.0, -2.0, -1.0]))
    assert (only.start, only.end, only.count) == (-3, -2, 11)
    # Eleven values 0..10: percentile p lies at p / 10.
    assert (only.p02, only.p50, only.p98) == pytest.approx((0.2, 5, 9.8), abs=1e-12)
    assert only.width == pytest.approx(9.6)
    assert envelope(points("token", x, y), np.array([-3.0, -2.0, -1.0])) == []


def test_staleness_groups_are_neighbours_and_the_freshest_comes_first():
    update = [0, 1, 2, 3, 4, 4, 0]
    split = by_staleness(points("token", np.zeros(7), range(7), update), groups=3)
    assert list(split) == ["updates 0 to 1", "updates 2 to 3", "update 4"]
    assert [part.y.tolist() for part in split.values()] == [[0, 1, 6], [2, 3], [4, 5]]
    assert list(by_staleness(points("token", np.zeros(7), None, update), groups=9)) == [
        f"update {i}" for i in range(5)
    ]
    assert by_staleness(points("token", []), groups=3) == {}


def test_a_missing_bin_is_a_gap_in_what_is_drawn():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    bins = [Bin(-3, -2, 60, -1, 0, 1), Bin(-2, -1, 60, -2, 0, 2), Bin(0, 1, 60, -3, 0.5, 3)]
    draw_envelope(axes, bins, color="black", label="a run", linestyle="--")
    label_axes(axes, "sequence_mean")
    low, high, median, equal = axes.lines
    np.testing.assert_array_equal(low.get_xdata(), [-3, -2.5, -1.5, -1, np.nan, 0, 0.5, 1])
    np.testing.assert_array_equal(low.get_ydata(), [-1, -1, -2, -2, np.nan, -3, -3, -3])
    np.testing.assert_array_equal(high.get_ydata(), [1, 1, 2, 2, np.nan, 3, 3, 3])
    np.testing.assert_array_equal(median.get_ydata(), [0, 0, 0, 0, np.nan, 0.5, 0.5, 0.5])
    assert equal.get_ydata() == [0, 0]
    assert "nats/token" in axes.get_xlabel() and "nats/token" in axes.get_ylabel()
    draw_envelope(axes, [], color="black", label="no bins")
    assert axes.get_legend_handles_labels()[1] == ["a run", "no bins"]
