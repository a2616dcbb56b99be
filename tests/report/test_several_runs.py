"""The report of several runs: laid over each other, compared, and named apart."""

import json

import pytest

from alp_megatron.cli import main
from alp_megatron.errors import UserError
from alp_megatron.report.overlay_figures import LONGEST, OVERLAYS, shortened
from alp_megatron.report.run_record import labels, read_runs
from alp_megatron.report.sections import config_differences, mismatch_tables
from alp_megatron.report.write import write_report
from tests.support.reports import Tags, overwrite, write_config, write_envelope, write_run


@pytest.fixture
def runs(tmp_path):
    for name, method, steps in (("alp", "alp", 3), ("plain", "bypass", 5)):
        write_run(tmp_path / name, steps=steps)
        write_config(tmp_path / name, f"objective.method={method}", f"run_dir=runs/{name}")
    write_envelope(tmp_path / "alp", step=2, noise=0.1)
    return [tmp_path / "alp", tmp_path / "plain"]


def test_one_page_beside_the_runs(runs, tmp_path):
    out = write_report(runs)
    assert out == tmp_path / "report.html"
    page = out.read_text()
    assert "http" not in page and "@import" not in page and "url(" not in page
    tags = Tags(page).seen
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}
    made = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert made == {*OVERLAYS, "sigma", "envelope_token_1", "envelope_sequence_sum_1"}
    assert len([tag for tag, _ in tags if tag == "img"]) == len(made)
    assert "objective.<wbr>method" in page and "Warnings" in page
    assert not (runs[0] / "report.html").exists()


def test_mismatch_of_every_run_at_its_last_step_and_in_the_median(tmp_path):
    for name, k3 in (("a", [0.5, 0.125, 0.25]), ("b", [0.001])):
        write_run(tmp_path / name, steps=len(k3))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(text) for text in lines]
        for record, value in zip(records, k3, strict=True):
            record |= {"mismatch_before/k3": value, "mismatch_during_perturbed/k3": 2 * value}
            record |= {"mismatch_before/ess": 1 - value}
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    runs = read_runs([tmp_path / "a", tmp_path / "b"])
    tables = mismatch_tables(dict(zip(labels(runs), runs, strict=True)))
    assert list(tables) == ["mismatch_before", "mismatch_during_perturbed"]
    assert tables["mismatch_before"]["k3 (nats/token)"] == ["0.25 / 0.25", "0.001 / 0.001"]
    assert tables["mismatch_during_perturbed"]["k3 (nats/token)"] == ["0.5 / 0.5", "0.002 / 0.002"]
    assert tables["mismatch_before"]["ess"] == ["0.75 / 0.75", "0.999 / 0.999"]


def test_only_keys_that_differ_are_shown(runs):
    read = read_runs(runs)
    differences = config_differences(dict(zip(labels(read), read, strict=True)))
    assert differences == {"objective.method": ["alp", "bypass"]}


def test_a_sweep_s_members_have_the_names_of_the_manifest(tmp_path):
    lines = [
        {"index": i, "name": "-", "values": {"objective.method": m, "seed": 1}}
        for i, m in enumerate(["alp", "tis"])
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("0000", "0001", "other"):
        write_run(tmp_path / name, steps=1)
    read = read_runs([tmp_path / name for name in ("0000", "0001", "other")])
    assert labels(read) == ["method=alp seed=1", "method=tis seed=1", "other"]
    assert labels(read[:2]) == ["method=alp", "method=tis"]  # the seed tells nothing
    assert labels(read[:1] + read[2:]) == ["method=alp seed=1", "other"]


def test_equal_names_are_told_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name / "run", steps=1)
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert labels(read_runs(paths)) == [f"{tmp_path.name}/{name}/run" for name in ("a", "b")]
    with pytest.raises(UserError, match="different directories: .* --out FILE"):
        write_report(paths)
    with pytest.raises(UserError, match="is given twice"):
        write_report([paths[0], paths[1], paths[0]])


def test_the_command_refuses_in_one_sentence(runs, capsys):
    overwrite(runs[1] / "config.yaml", "  clip_grad: ", "  clip_gradient: ")
    assert main(["report", *map(str, runs)]) == 2
    said = capsys.readouterr()
    expected = f"error: {runs[1]}/config.yaml: Unknown key trainer.clip_gradient; another version"
    assert said.out == "" and said.err.startswith(expected) and said.err.count("\n") == 1
    assert sorted(path.name for path in runs[0].parent.iterdir()) == ["alp", "plain"]


def test_a_long_label_keeps_both_ends():
    short = shortened("a" * 40 + "b" * 40)
    assert len(short) <= LONGEST and short.startswith("aaa") and short.endswith("bbb")
    assert shortened("a" * LONGEST) == "a" * LONGEST
