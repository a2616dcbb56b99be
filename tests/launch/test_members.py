"""What a sweep expands to, and which members are due."""

import json

import pytest

from alp_megatron.cli import main
from alp_megatron.errors import UserError
from alp_megatron.launch.members import (
    Member,
    expand,
    extended,
    load_sweep,
    read_manifest,
    write_manifest,
)
from alp_megatron.launch.status import read_status, seed_means, table, write_status

METHODS = "configs/sweeps/method_by_seed.yaml"


def sweep(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"sweep_dir: {tmp_path}/out\nbase: /base.yaml\n{text}")
    return load_sweep(path)


def test_grid_conditions_and_seeds():
    members = expand(load_sweep(METHODS))
    alp = [m for m in members if m["objective.method"] == "alp"]
    assert len(members) == (1 + 1 + 3) * 3 and len(alp) == 9
    assert members[0] == {"objective.method": "grpo", "seed": 1}
    assert {m["perturbation.sigma0"] for m in alp} == {0.003, 0.01, 0.03}


def test_list_times_grid_and_a_condition_on_a_common_value(tmp_path):
    text = "set: {a: 1}\nlist: [{b: 2}, {b: 3, c: 4}]\ngrid: {d: [5, 6]}\n"
    text += "conditions: [{when: {a: 1, b: 3}, grid: {e: [7]}}, {when: {f: 0}, grid: {g: [1]}}]"
    assert expand(sweep(tmp_path, text)) == [
        {"b": 2, "d": 5},
        {"b": 2, "d": 6},
        {"b": 3, "c": 4, "d": 5, "e": 7},
        {"b": 3, "c": 4, "d": 6, "e": 7},
    ]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("grid: {}", "no member"),
        ("grid: {a: []}", "grid.a is an empty list"),
        ("grid: {a: 1}", "grid.a is 1"),
        ("seeds: [1, 1]", "'seed=1' twice"),
        ("grit: {a: [1]}", "Unknown key grit: did you mean grid"),
        ("max_parallel: 0\nseeds: [1]", "max_parallel is 0"),
    ],
)
def test_bad_sweeps_are_one_sentence(tmp_path, text, sentence):
    with pytest.raises(UserError) as caught:
        expand(sweep(tmp_path, text))
    assert sentence in str(caught.value)


def test_a_member_keeps_its_number(tmp_path):
    first = extended([], [{"a": 1, "b": 2}, {"a": 3}])
    write_manifest(tmp_path, [], first)
    assert read_manifest(tmp_path) == first
    second = extended(first, [{"a": 9}, {"b": 2, "a": 1}])
    assert [m.index for m in second] == [2, 0]
    write_manifest(tmp_path, first, second)
    assert [m.index for m in read_manifest(tmp_path)] == [0, 1, 2]  # {"a": 3} is still there
    (tmp_path / "manifest.jsonl").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(tmp_path)


def test_states_with_slurms_word_on_them(tmp_path):
    assert read_status(tmp_path, {})["state"] == "new"
    write_status(tmp_path, "submitted", job_id="7_1")
    assert read_status(tmp_path, {"7_1": "PENDING"})["state"] == "submitted"
    assert read_status(tmp_path, {"7_2": "RUNNING"})["state"] == "lost"
    write_status(tmp_path, "running", job_id="7_1", restarts=0)
    requeued = read_status(tmp_path, {"7_1": "PENDING"})
    assert requeued["state"] == "requeued" and requeued["active"]
    write_status(tmp_path, "failed", job_id="7_1", exit_code=1)
    assert read_status(tmp_path, {})["state"] == "failed"
    (tmp_path / "launch" / "status.json").write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        read_status(tmp_path, {})


def test_an_array_holds_what_is_due(tmp_path, capsys):
    """Finished members are left out; the wrong one is named before anything is written."""
    path, out = tmp_path / "sweep.yaml", tmp_path / "out"
    text = f"sweep_dir: {out}\nbase: {{}}/configs/quickstart.yaml\nseeds: [1, 2, 3]\n"
    path.write_text(text.format(__file__.split("/tests/")[0]) + "max_parallel: 2\n")
    words = ["launch", "sweep", str(path), "--cluster", "configs/clusters/cpu.yaml", "--dry-run"]
    assert main([*words, "trainer.steps=0"]) == 2
    assert "member 'seed=1': trainer.steps is 0" in capsys.readouterr().err
    assert main(words) == 0 and "#SBATCH --array=0,1,2%2\n" in capsys.readouterr().out
    assert not out.exists()

    write_manifest(out, [], [Member(1, {"seed": 2}), Member(0, {"seed": 1})])
    (out / "0001").mkdir()
    write_status(out / "0001", "finished", exit_code=0)
    assert main(words) == 0 and "#SBATCH --array=0,2%2\n" in capsys.readouterr().out


def test_one_of_cluster_and_local(capsys):
    assert main(["launch", "sweep", METHODS]) == 2
    assert "--cluster FILE and --local" in capsys.readouterr().err


def test_the_table_of_results(tmp_path):
    members = [Member(0, {"m": "alp", "s": 0.1}), Member(1, {"m": "grpo"})]
    run_dir = tmp_path / "0000"
    run_dir.mkdir()
    write_status(run_dir, "finished", exit_code=0)
    record = {"step": 4, "eval/score": 0.5, "reward/mean": 0.25, "mismatch_before/k3": 1e-5}
    (run_dir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    heading, first, second = table(tmp_path, members)
    assert heading[:5] == ["member", "m", "s", "state", "steps"]
    assert first == ["0000", "alp", "0.1", "finished", "5", "0.5", "0.25", "1e-05", ""]
    assert second == ["0001", "grpo", "", "new", "0", "", "", "", ""]


def test_means_over_the_seeds_that_finished(tmp_path):
    cells = [("alp", 1, 0.4), ("alp", 2, 0.6), ("alp", 3, None), ("grpo", 1, 0.5)]
    members = [Member(i, {"m": m, "seed": seed}) for i, (m, seed, _) in enumerate(cells)]
    for member, (_, _, score) in zip(members, cells, strict=True):
        run_dir = member.run_dir(tmp_path)
        run_dir.mkdir()
        write_status(run_dir, "finished" if score else "failed", exit_code=0 if score else 1)
        record = {"step": 4, "eval/score": score or 0.0, "reward/mean": 0.25}
        (run_dir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    heading, *rows = seed_means(tmp_path, members)
    assert heading == ["mean over seeds", "seeds", "eval/score", "reward/mean", *heading[4:]]
    # Of two values the interval's ends are the values.
    assert rows == [["m=alp", "2", "0.5 [0.4, 0.6]", "0.25 [0.25, 0.25]", "", ""]]
