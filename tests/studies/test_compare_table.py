"""Intervals, collapses, measures and the table, against values worked out by hand."""

import csv
import gzip
import json
from itertools import product

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from alp_megatron.cli import main
from alp_megatron.config.load import resolved_yaml
from alp_megatron.errors import UserError
from alp_megatron.metrics.intervals import mean_band, mean_interval
from alp_megatron.metrics.tokens import TokenRatios
from alp_megatron.studies.compare.config import (
    CollapseConfig,
    ComparisonConfig,
    collapse_reason,
    definition,
    load_comparison,
)
from alp_megatron.studies.compare.figures import (
    draw_envelopes,
    draw_scores,
    last_ratios,
    split_panels,
)
from alp_megatron.studies.compare.outcomes import outcome
from alp_megatron.studies.compare.trials import check_definitions, trials_of
from tests.support.runs import QUICKSTART, REPO


def test_interval_against_all_resamples():
    """With three seeds there are 27 equally likely resamples: their percentiles are the limit."""
    values = [0.1, 0.4, 0.9]
    means = [np.mean(draw) for draw in product(values, repeat=3)]
    wanted = np.percentile(means, (2.5, 97.5), method="inverted_cdf")
    found = mean_interval(values)
    assert found.mean == pytest.approx(1.4 / 3, abs=1e-15)
    assert (found.low, found.high) == pytest.approx(tuple(wanted), abs=1e-12)
    assert wanted.tolist() == pytest.approx([0.1, 0.9])  # each has 1 of 27, which is over 2.5 %


def test_interval_of_many_values_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).normal(size=40)
    low, high = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    found = mean_interval(values)
    # Both have a Monte Carlo error of about 0.003 here.
    assert found.low == pytest.approx(low, abs=0.02) and found.high == pytest.approx(high, abs=0.02)


def test_intervals_do_not_depend_on_what_came_before():
    first = mean_interval([1.0, 2.0, 4.0, 8.0])
    mean_interval(np.arange(5))
    assert mean_interval([1.0, 2.0, 4.0, 8.0]) == first
    low, high = mean_band(np.array([[1.0, 0], [2, 0], [4, 0], [8, 0]]))
    assert (low[0], high[0]) == (first.low, first.high) and low[1] == high[1] == 0


def test_one_seed_has_no_interval():
    assert mean_interval([0.5]).low is None and mean_interval([0.5]).shown(".3f") == "0.500"
    assert mean_band([[1.0, 2.0]]) is None


@pytest.mark.parametrize(
    "scores, skipped, reason",
    [
        ([0.5, 0.9, 0.75], 0, None),  # 0.15 below its best is not a collapse
        ([0.5, 0.9, 0.65], 0, "0.2 below its best, 0.900"),
        ([0.5, 0.45, 0.45], 0, None),
        ([0.5, 0.45, 0.35], 0, "0.1 below the base, 0.500"),
        ([0.5, 0.9, 0.1, 0.85], 0, None),  # it came back
        ([0.5, 0.9, 0.9], 2, "2 updates skipped"),
    ],
)
def test_collapse(scores, skipped, reason):
    found = collapse_reason(CollapseConfig(), scores, skipped)
    assert found is None if reason is None else reason in found


def test_skipped_updates_may_be_left_out_of_the_definition():
    config = CollapseConfig(skipped_updates=False)
    assert collapse_reason(config, [0.5, 0.5], 3) is None
    assert "skipped" not in definition(config) and "skipped" in definition(CollapseConfig())


def records(scores, *, sigma=0.0, k3=(1e-3,), skipped=0):
    """One record a step; `scores` begins with the base model's and has one for each step."""
    return [
        {
            "step": step,
            "eval/step": step + 1,
            "eval/score": score,
            "reward/mean": score - 0.1,
            "mismatch_during_perturbed/k3": 2e-3,
            "mismatch_before/k3": k3[step % len(k3)],
            "ratio/clip_low": 0.01,
            "ratio/clip_high": 0.02,
            "ratio/dual_clip": 0.03,
            "alp/sigma_mean": sigma,
            "alp/sigma_max": sigma,
            "alp/effective_fraction": 0.75 if sigma else 0.0,
            "updates/skipped": skipped,
            "time/total": 30.0,
        }
        for step, score in enumerate(scores)
    ]


def with_base(base, found):
    """Before the first evaluation a run shows the base score."""
    first = found[0] | {"step": 0, "eval/step": 0, "eval/score": base}
    return [first] + [r | {"step": r["step"] + 1, "eval/step": r["eval/step"] + 1} for r in found]


def comparison(tmp_path, **changes):
    return ComparisonConfig(compare_dir=str(tmp_path), base="b", **changes)


def test_measures_of_a_run(tmp_path):
    found = with_base(0.2, records([0.4, 0.8, 0.6], k3=(1e-3, 3e-3, 2e-3)))
    # evaluations: step 0 0.2, step 2 0.4, step 3 0.8, step 4 0.6
    result = outcome(found, comparison(tmp_path, final_evaluations=2))
    assert result.final_score == pytest.approx(0.7)
    assert result.best_score == 0.8
    assert result.mean_score == pytest.approx((2 * 0.3 + 0.6 + 0.7) / 4)
    assert result.k3_before == pytest.approx(1.5e-3)  # of 1e-3, 1e-3, 3e-3, 2e-3
    assert (result.k3_clean, result.k3_perturbed) == (None, 2e-3)
    assert result.clipped_share == pytest.approx(0.06)
    assert result.effective_fraction is None and result.sigma is None
    assert result.minutes == pytest.approx(2.0)
    assert result.collapse is None
    noisy = outcome(records([0.4, 0.1], sigma=0.01), comparison(tmp_path))
    assert (noisy.effective_fraction, noisy.sigma) == (0.75, 0.01) and "best" in noisy.collapse


FINALS = {"grpo": [0.5, 0.6], "bypass": [0.4, 0.4], "alp": [0.7, 0.9]}


@pytest.fixture
def finished(tmp_path):
    """A comparison whose runs have finished, as files."""
    path, root = tmp_path / "comparison.yaml", tmp_path / "out"
    path.write_text(
        yaml.safe_dump(
            {
                "compare_dir": str(root),
                "base": str(REPO / QUICKSTART),
                "set": {"trainer.steps": 2, "trainer.lr": 0.0001},
                "methods": list(FINALS),
                "seeds": [1, 2],
                "final_evaluations": 1,
            }
        )
    )
    for trial in trials_of(load_comparison(path, []), []):
        trial.run_dir.mkdir(parents=True)
        (trial.run_dir / "config.yaml").write_text(resolved_yaml(trial.config))
        final = FINALS[trial.method][trial.seed - 1]
        sigma = 0.01 if trial.method == "alp" else 0.0
        lines = [json.dumps(record) + "\n" for record in records([0.45, final], sigma=sigma)]
        (trial.run_dir / "metrics.jsonl").write_text("".join(lines))
    return path, root


def test_table_figures_and_documents(finished, capsys):
    path, root = finished
    assert main(["compare", str(path), "--table-only"]) == 0
    tree = json.loads((root / "comparison.json").read_text())
    rows = {row["method"]: row for row in tree["rows"]}
    assert [row["measures"]["final_score"]["mean"] for row in rows.values()] == pytest.approx(
        [0.55, 0.4, 0.8]
    )
    assert rows["alp"]["baseline"] == "grpo" and rows["grpo"]["baseline"] is None
    # At the same seed: 0.7 - 0.5 and 0.9 - 0.6; with two seeds the interval has their range.
    assert rows["alp"]["to_baseline"] == pytest.approx(
        {"mean": 0.25, "low": 0.2, "high": 0.3, "n": 2}
    )
    assert rows["alp"]["to_reference"]["mean"] == pytest.approx(0.4)
    assert rows["bypass"]["to_reference"] is None
    assert len(tree["runs"]) == 6 and tree["unfinished"] == []
    with open(root / "comparison.csv") as file:
        table = {line["method"]: line for line in csv.DictReader(file)}
    assert float(table["alp"]["to_baseline_low"]) == pytest.approx(0.2)
    assert table["grpo"]["sigma"] == "" and float(table["alp"]["sigma"]) == 0.01
    text = (root / "comparison.md").read_text()
    assert "0.800 [0.700, 0.900]" in text and "+0.250 [+0.200, +0.300]" in text
    assert text in capsys.readouterr().out
    assert (root / "figures" / "figure1.png").read_bytes().startswith(b"\x89PNG")


def test_kept_records_give_the_same_table(finished, capsys):
    """Compressed and in another place: what evidence is."""
    path, root = finished
    assert main(["compare", str(path), "--table-only"]) == 0
    first = json.loads((root / "comparison.json").read_text())
    moved = root.rename(root.with_name("moved"))
    for metrics in moved.glob("*/metrics.jsonl"):
        (metrics.parent / "metrics.jsonl.gz").write_bytes(gzip.compress(metrics.read_bytes()))
        metrics.unlink()
    assert main(["compare", str(path), "--table-only", f"compare_dir={moved}"]) == 0
    again = json.loads((moved / "comparison.json").read_text())
    assert again["rows"] == first["rows"] and again["runs"] == first["runs"]
    metrics.with_name("metrics.jsonl.gz").write_bytes(b"no")
    capsys.readouterr()
    assert main(["compare", str(path), "--table-only", f"compare_dir={moved}"]) == 2
    assert "metrics.jsonl.gz is damaged" in capsys.readouterr().err


def test_unfinished_runs_are_named_and_in_no_number(finished, capsys):
    path, root = finished
    metrics = root / "0002" / "metrics.jsonl"  # alp, seed 1
    metrics.write_text(metrics.read_text().splitlines()[0] + "\n")
    assert main(["compare", str(path), "--table-only"]) == 0
    tree = json.loads((root / "comparison.json").read_text())
    alp = tree["rows"][2]
    assert alp["seeds"] == [2] and alp["measures"]["final_score"]["low"] is None
    assert tree["unfinished"] == [
        {"run": 2, "mismatch": "as-configured", "method": "alp", "seed": 1}
    ]
    said = capsys.readouterr().out
    assert said.endswith("figures/\n") and "- mismatch=as-configured method=alp: seed 1\n" in said


def test_definitions_stay_as_they_were_before_the_runs(tmp_path):
    before = comparison(tmp_path)
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(before.model_dump()))
    check_definitions(comparison(tmp_path, seeds=[1, 2]))
    with pytest.raises(UserError, match="collapse.drop=0.3, but .* with 0.2: restore it"):
        check_definitions(comparison(tmp_path, collapse={"drop": 0.3}))


@pytest.fixture
def drawn(monkeypatch):
    """The figures, as they are saved."""
    figures = []
    save = Figure.savefig

    def keep(figure, *arguments, **settings):
        figures.append(figure)
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_figure_1_names_its_axes_and_methods(drawn):
    runs = {"alp": [records([0.1, 0.5]), records([0.1, 0.7])], "grpo": [records([0.1, 0.2])]}
    draw_scores({"none": runs, "int4": {"alp": runs["alp"]}})
    (figure,) = drawn
    panels = figure.get_axes()
    assert [axes.get_xlabel() for axes in panels] == ["", "", "training step", "training step"]
    assert panels[0].get_ylabel() == "evaluation score\n(mean reward)"
    assert panels[2].get_ylabel() == "training reward\n(mean)"
    assert [axes.get_title() for axes in panels[:2]] == ["none", "int4"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["alp", "grpo"]
    mean, _ = panels[0].get_lines()
    assert mean.get_ydata().tolist() == pytest.approx([0.1, 0.6])
    looks = {(line.get_color(), str(line.get_linestyle())) for line in panels[0].get_lines()}
    assert len(looks) == 2


def test_many_methods_of_a_mismatch_get_two_panels():
    few, many = [f"m{i}" for i in range(8)], [f"m{i}" for i in range(9)]
    runs = {"few": dict.fromkeys(few, []), "many": dict.fromkeys(many, [])}
    panels = split_panels(runs, {"m1", "m8"})
    assert list(panels) == ["few", "many, without noise", "many, with noise"]
    assert list(panels["few"]) == few and list(panels["many, with noise"]) == ["m1", "m8"]
    assert list(split_panels(runs, set())) == ["few", "many"]


def ratios(width, noise=0.0):
    """64 responses of 4 tokens, one of them `width` nats off by turns up and down."""
    sample_id = np.repeat(np.arange(64), 4)
    rollout = np.linspace(-2, -0.1, 256).astype(np.float32)
    off = np.where(np.arange(256) % 8 == 0, width, np.where(np.arange(256) % 8 == 4, -width, 0))
    clean = rollout + off.astype(np.float32)
    update = (sample_id // 32).astype(np.int32)
    return TokenRatios(sample_id, update, rollout, clean, clean + np.float32(noise))


def test_figure_2_names_its_axes_and_numerators(drawn):
    draw_envelopes({"grpo": [ratios(0.1)], "alp": [ratios(0.1, 0.02), ratios(0.2, 0.02)]})
    (figure,) = drawn
    above, below = figure.subfigs
    assert above.get_supxlabel() == "rollout log-probability of the response (nats)"
    assert above.get_supylabel() == "log ratio of the response (nats)"
    assert below.get_supxlabel().endswith("(nats/token)")
    assert [axes.get_title() for axes in above.axes] == ["grpo (1 run)", "alp (2 runs)"]
    (legend,) = figure.legends
    assert [text.get_text().split()[0] for text in legend.get_texts()] == ["clean", "perturbed"]
    # Sums over a response are 0.1 up or down, and a quarter of that for each token.
    for part, size in ((above, 0.1), (below, 0.025)):
        low, high, middle = (line.get_ydata() for line in part.axes[0].get_lines()[:3])
        assert np.allclose(low, -size, atol=1e-6) and np.allclose(high, size, atol=1e-6)


def test_a_wide_envelope_does_not_flatten_the_others(drawn):
    draw_envelopes({"grpo": [ratios(5.0)], "bypass": [ratios(0.15)]})
    above = drawn[0].subfigs[0]
    assert above.axes[1].get_yscale() == "symlog"
    assert above.get_supylabel().endswith("logarithmic beyond ±0.1")


def test_envelopes_of_the_last_step_are_drawn_by_mismatch(finished):
    path, root = finished
    for trial in trials_of(load_comparison(path, []), []):
        (trial.run_dir / "envelopes").mkdir()
        for step, width in ((0, 9.0), (1, 0.1)):
            ratios(width).save(trial.run_dir / "envelopes" / f"step_{step:06d}.npz")
    assert last_ratios(trial.run_dir).clean_logprobs[0] == pytest.approx(-1.9)
    assert main(["compare", str(path), "--table-only"]) == 0
    names = [figure.name for figure in sorted((root / "figures").iterdir())]
    assert names == ["figure1.png", "figure2.png"]
