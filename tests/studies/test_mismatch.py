"""The mismatch matrix from log-probabilities that are given, and what the command refuses."""

import json
import math

import numpy as np
import pytest

from alp_megatron.cli import main
from alp_megatron.metrics.envelope import envelope_bins, envelope_width
from alp_megatron.studies.mismatch.table import (
    HEADERS,
    Agreement,
    compare,
    markdown_envelope,
    markdown_table,
    text_table,
)
from tests.support.runs import QUICKSTART

UNABLE = "no kernel on this machine"


def test_width_of_a_known_distribution():
    # 101 evenly spaced log ratios: percentile p is the value number p.
    rollout = np.full(101, -1.0)
    assert envelope_width(rollout + np.linspace(-0.5, 0.5, 101), rollout) == pytest.approx(0.96)
    assert envelope_width(rollout, rollout) == 0


def test_bins_are_where_the_rollout_log_probability_is():
    # Bins of 0.1 from -5: 60 tokens at -4.95, 49 at -2.05 (too few), 51 on the edge 0.
    rollout = np.concatenate([np.full(60, -4.95), np.full(49, -2.05), np.zeros(51)])
    log_ratio = np.concatenate([np.linspace(0, 1, 60), np.ones(49), np.linspace(-2, 0, 51)])
    first, last = envelope_bins(rollout + log_ratio, rollout, lowest=-5)
    assert (first.start, first.end, first.count) == (-5, pytest.approx(-4.9), 60)
    assert (first.p02, first.p50, first.p98) == pytest.approx((0.02, 0.5, 0.98))
    assert (last.start, last.end, last.count) == (pytest.approx(-0.1), 0, 51)
    assert last.width == pytest.approx(2 * 0.96)


def test_the_lowest_token_is_in_the_first_bin():
    rollout = np.linspace(-3.3, 0, 5000)
    bins = envelope_bins(rollout, rollout, lowest=rollout.min())
    assert sum(b.count for b in bins) == 5000 and bins[0].start == -3.3


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    exact = -rng.exponential(1.0, 4000)
    near, far = (np.minimum(exact + scale * rng.standard_normal(4000), 0) for scale in (0.001, 0.1))
    return compare({"fp32": exact, "bf16": near}, {"none": near, "fp8": UNABLE, "int4": far})


def test_every_pair_has_a_row_and_a_failure_keeps_its_reason(rows):
    pairs = [(row.trainer, row.rollout) for row in rows]
    assert pairs == [(t, r) for t in ("fp32", "bf16") for r in ("none", "fp8", "int4")]
    assert [row.result for row in rows if row.rollout == "fp8"] == [UNABLE, UNABLE]


def test_numbers_are_those_of_the_definitions():
    ours, theirs = np.array([-0.9, -0.7, -1.7]), np.array([-1.0, -0.5, -2.0])
    (row,) = compare({"fp32": ours}, {"none": theirs})
    found = row.result
    assert isinstance(found, Agreement) and found.tokens == 3 and found.bins == []
    assert found.k3 == pytest.approx(sum(math.exp(x) - x - 1 for x in (0.1, -0.2, 0.3)) / 3)
    assert (found.abs_diff_mean, found.abs_diff_max) == pytest.approx((0.2, 0.3))
    # Between -0.2, 0.1 and 0.3 the percentiles 2 and 98 lie at places 0.04 and 1.96.
    assert found.envelope_width == pytest.approx((0.1 + 0.96 * 0.2) - (-0.2 + 0.04 * 0.3))


def test_numbers_of_many_tokens_are_numpys():
    rng = np.random.default_rng(1)
    theirs = -rng.exponential(1.0, 5000)
    ours = theirs + rng.standard_normal(5000) * 10 ** rng.uniform(-6, 0, 5000)
    (row,) = compare({"fp32": ours}, {"int8": theirs})
    log_ratio = np.sort(ours - theirs)
    assert row.result.k3 == pytest.approx((np.exp(log_ratio) - log_ratio - 1).mean(), rel=1e-9)
    assert row.result.abs_diff_mean == pytest.approx(np.abs(log_ratio).mean(), rel=1e-12)
    assert row.result.abs_diff_max == max(-log_ratio[0], log_ratio[-1])
    # 4999 steps: percentile 2 lies at 99.98 of them, percentile 98 at 4899.02.
    low = 0.02 * log_ratio[99] + 0.98 * log_ratio[100]
    high = 0.98 * log_ratio[4899] + 0.02 * log_ratio[4900]
    assert row.result.envelope_width == pytest.approx(high - low, rel=1e-9)


def test_equal_policies_differ_by_nothing(rows):
    of_equals = rows[3].result
    assert (rows[3].trainer, rows[3].rollout) == ("bf16", "none")
    assert (of_equals.k3, of_equals.abs_diff_max, of_equals.envelope_width) == (0, 0, 0)


def test_tables(rows):
    lines = text_table(rows).splitlines()
    assert len(lines) == 7 and lines[2].split(maxsplit=2) == ["fp32", "fp8", UNABLE]
    assert lines[1].split()[:3] == ["fp32", "none", "4000"]
    markdown = markdown_table(rows).splitlines()
    assert len(markdown) == 8 and all(line.count("|") == len(HEADERS) + 1 for line in markdown)
    envelope = markdown_envelope(rows, "fp32").splitlines()
    assert envelope[0] == "| rollout log p | none | int4 |"
    assert all(line.count("|") == 4 for line in envelope) and len(envelope) > 3


def test_tables_where_no_engine_ran():
    rows = compare({"fp32": -np.ones(3)}, {"fp8": UNABLE})
    assert UNABLE in text_table(rows) and UNABLE in markdown_table(rows)


@pytest.fixture
def refused(tmp_path, capsys):
    def sentence(*arguments, out="matrix.md") -> str:
        before = sorted(tmp_path.iterdir())
        assert main(["mismatch", QUICKSTART, "--out", str(tmp_path / out), *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before
        return said.err

    return sentence


def test_unknown_quantization(refused):
    assert "'int3': use some of none, int8, fp8" in refused("--quantizations", "none,int3")


def test_unknown_trainer(refused):
    assert "'fp4': use some of float32, bfloat16, fp8_delayed" in refused("--trainers", "fp4")


def test_a_recipe_that_the_model_cannot_take(refused):
    kept = "model.fp8.num_layers_at_start_in_bf16=1"
    said = refused("--trainers", "fp8_mxfp8", "model.fp8.recipe=delayed", kept)
    assert f"{kept}: the delayed recipe has no layers" in said


def test_no_such_directory(refused):
    assert "its directory does not exist" in refused(out="gone/matrix.md")


def test_ignored_layer_that_is_not_there(refused):
    assert "'*.o_prog'" in refused("rollout.quantization_ignore=['*.o_prog']")


@pytest.mark.parametrize("length", [0, 3, "1", True])
def test_prompt_length(refused, tmp_path, length):
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text(json.dumps({"sample_id": 4, "input_ids": [5, 6, 7], "prompt_length": length}))
    said = refused("--tokens", str(tokens))
    assert "prompt_length of sample 4 must be from 1 to" in said
