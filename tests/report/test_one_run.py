"""The report of one run: one file, complete, and a clear sentence where the record is bad."""

import re

import pytest
from matplotlib.figure import Figure

from alp_megatron.errors import UserError
from alp_megatron.report.canvas import scores, series
from alp_megatron.report.figures import PLOTS
from alp_megatron.report.run_record import read_run
from alp_megatron.report.sections import older, summary, unhealthy
from alp_megatron.report.write import write_report
from tests.support.reports import Tags, overwrite, write_config, write_envelope, write_run

BY_STALENESS = [f"{of}_{n}" for of in ("token", "sequence_sum") for n in ("clean", "perturbed")]
ENVELOPES = {
    f"envelope_{name}" for name in ("token", "sequence_sum", "sequence_mean", *BY_STALENESS)
}


def test_report_is_one_file_with_all_figures(tmp_path):
    write_run(tmp_path, steps=11, **{"mismatch_before/k3": 0.7})  # 0 to 10
    (tmp_path / "environment.json").write_text('{"versions": {"torch": "9.9"}, "commit": "<b>"}')
    write_config(tmp_path, "model.path=a&b")
    write_envelope(tmp_path, step=2)
    write_envelope(tmp_path, step=5, noise=0.1)
    write_envelope(tmp_path, step=19)  # of steps that a killed run lost
    out = write_report([tmp_path], tmp_path / "new" / "page.html")
    page = out.read_text()

    assert "http" not in page and "@import" not in page and "url(" not in page
    tags = Tags(page).seen
    sources = [attrs["src"] for tag, attrs in tags if tag == "img"]
    assert len(sources) == len(PLOTS) + len(ENVELOPES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags
    text = re.sub("<[^>]*>", " ", page)
    for shown in ("0.300 (step 0)", "0.500 (step 10)", "+0.200", "9.9", "&lt;b&gt;", "a&amp;b"):
        assert shown in text
    assert "Step 11: mismatch_before/k3 is 0.7, healthy is at most 0.1" in text
    assert "Ratio envelopes of step 6" in text and "has no noise" not in text
    made = {path.stem: path.read_bytes() for path in (tmp_path / "new" / "figures").iterdir()}
    assert made.keys() == PLOTS.keys() | ENVELOPES
    assert all(png.startswith(b"\x89PNG") for png in made.values())
    assert sorted(p.name for p in out.parent.iterdir()) == ["figures", "page.html"]
    assert not (tmp_path / "figures").exists() and not (tmp_path / "report.html").exists()


def test_names_and_values_are_text_and_no_markup(tmp_path):
    for name in ("<script>x</script>", "b'\"&"):
        write_run(tmp_path / name.replace("/", ""), steps=2)
        write_config(tmp_path / name.replace("/", ""), f"task.train='{name[0]}img src=x>'")
    runs = sorted(path for path in tmp_path.iterdir())
    for chosen in (runs[:1], runs[1:], runs):
        page = write_report(chosen, tmp_path / "report.html").read_text()
        assert not {"script", "x"} & {tag for tag, _ in Tags(page).seen}
        assert {attrs["src"][:5] for tag, attrs in Tags(page).seen if tag == "img"} == {"data:"}
        assert "&lt;script&gt;" in page or "b&#39;&#34;&amp;" in page


def test_many_layers_get_a_color_bar():
    records = [{"step": s} | {f"alp/sigma_layer_{i}": i + s for i in range(20)} for s in range(3)]
    axes = Figure().subplots()
    PLOTS["sigma"].draw(axes, records)
    assert len(axes.lines) == 20 and axes.get_legend_handles_labels()[1] == []
    bar = axes.figure.axes[1]
    assert bar.get_ylabel() == "layer" and bar.get_yticks().tolist() == [*range(0, 20, 3)]


def test_every_axis_has_a_name_and_a_unit(tmp_path):
    write_run(tmp_path, steps=3)
    records = read_run(tmp_path).records
    for plot in PLOTS.values():
        axes = Figure().subplots()
        plot.draw(axes, records)
        assert re.search(r"\((no unit|nats/token|s|0 to 1)\)$", axes.get_ylabel()), plot.title


def test_what_is_unhealthy_is_counted():
    records = [{"step": s, "mismatch_before/k3": 0.2 if s > 3 else 0.05} for s in range(12)]
    (sentence,) = unhealthy(records)
    assert sentence.startswith("Step 12: mismatch_before/k3 is 0.2")
    assert "(8 of 12 steps.)" in sentence


def test_report_says_what_the_mismatch_is_to(tmp_path):
    write_run(tmp_path, steps=1)
    write_config(tmp_path, "rollout.quantization=int8", "rollout.quantization_ignore=['*.o_proj']")
    found = summary(read_run(tmp_path))
    assert found["Rollout engine"] == "bfloat16, linear layers quantised to int8, except *.o_proj"
    assert found["Steps"] == "1" and found["Method"] == "alp, ratio of the token"
    write_config(tmp_path, "rollout.dtype=float32")
    assert summary(read_run(tmp_path))["Rollout engine"] == "float32, not quantised"


def test_steps_are_counted_from_one_and_scores_by_the_steps_made():
    records = [{"step": s, "eval/score": 0.1 * (s // 3), "eval/step": s // 3 * 3} for s in range(7)]
    steps, values = scores(records)
    assert steps.tolist() == [0, 3, 6] and values.tolist() == pytest.approx([0, 0.1, 0.2])
    assert series(records, "eval/step")[0].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_bad_records_are_user_errors(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="metrics.jsonl does not exist"):
        write_report([tmp_path])
    metrics.write_text("")
    with pytest.raises(UserError, match="no finished step yet"):
        write_report([tmp_path])
    metrics.write_text('{"step": 1}\nnot json\n')
    with pytest.raises(UserError, match="line 2"):
        write_report([tmp_path])
    write_run(tmp_path, steps=2)
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(UserError, match="environment.json is not JSON"):
        write_report([tmp_path])
    (tmp_path / "environment.json").unlink()
    (tmp_path / "envelopes").mkdir()
    (tmp_path / "envelopes" / "step_000001.npz").write_bytes(b"PK torn")
    with pytest.raises(UserError, match=r"step_000001\.npz is damaged"):
        write_report([tmp_path])
    assert not (tmp_path / "report.html").exists() and not (tmp_path / "figures").exists()


def test_runs_of_another_version_are_refused_by_the_file_and_the_key(tmp_path):
    write_run(tmp_path, steps=2)
    overwrite(tmp_path / "metrics.jsonl", '"ratio/p98"', '"ratio/p980"')
    with pytest.raises(UserError, match=r"metrics.jsonl line 1 has no ratio/p98: another version"):
        write_report([tmp_path])
    write_run(tmp_path, steps=2)
    write_config(tmp_path)
    overwrite(tmp_path / "config.yaml", "  lr: ", "  learn_rate: ")
    with pytest.raises(UserError, match=r"config.yaml: Unknown key trainer.learn_rate; another"):
        write_report([tmp_path])
    assert not (tmp_path / "report.html").exists()


def test_a_key_that_an_older_version_did_not_have_is_its_default(tmp_path):
    write_run(tmp_path, steps=1)
    write_config(tmp_path, "seed=7")
    assert older(read_run(tmp_path)) == []
    overwrite(tmp_path / "config.yaml", "  weight_decay: 0.0\n", "")
    run = read_run(tmp_path)
    assert run.defaulted == ["trainer.weight_decay"] and run.config.seed == 7
    (sentence,) = older(run)
    assert "has no trainer.weight_decay: shown with the defaults of this one" in sentence


def test_a_page_that_cannot_be_there(tmp_path):
    write_run(tmp_path, steps=1)
    with pytest.raises(UserError, match="is a directory: name a file in it"):
        write_report([tmp_path], tmp_path)
    with pytest.raises(UserError, match="cannot be made"):
        write_report([tmp_path], tmp_path / "metrics.jsonl" / "a" / "report.html")
