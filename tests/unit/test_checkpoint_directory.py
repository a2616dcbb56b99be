"""Which checkpoints of a run are kept."""

import json
import os
import shutil

import pytest

from alp_megatron.learner.checkpoints import (
    checkpoint_dirs,
    publish,
    remove_leftovers,
    retire,
    set_aside,
)


@pytest.fixture
def made(tmp_path):
    """A function that makes checkpoints with their scores; None for one without its own."""

    def make(scores: dict[int, float | None]):
        for step, score in scores.items():
            directory = tmp_path / "checkpoints" / f"step_{step:06d}"
            directory.mkdir(parents=True)
            scored = {"scored_step": step - (score is None), "latest_score": score or 0.99}
            (directory / "counters.json").write_text(json.dumps({"step": step} | scored))
        return tmp_path

    return make


def steps(run_dir):
    return [int(path.name[5:]) for path in checkpoint_dirs(run_dir)]


def test_the_newest_and_the_best_stay(made):
    run_dir = made({1: 0.3, 2: 0.8, 3: 0.5, 4: None, 5: 0.7})
    retire(run_dir, keep=2, keep_best=True)
    assert steps(run_dir) == [2, 4, 5]
    assert os.readlink(run_dir / "checkpoints" / "best") == "step_000002"
    made({6: 0.9})
    retire(run_dir, keep=2, keep_best=True)
    assert steps(run_dir) == [5, 6]
    assert (run_dir / "checkpoints" / "best" / "counters.json").is_file()
    assert os.readlink(run_dir / "checkpoints" / "best") == "step_000006"


def test_of_equals_the_newer_is_the_best(made):
    run_dir = made({1: 0.5, 2: 0.5, 3: 0.1})
    retire(run_dir, keep=1, keep_best=True)
    assert steps(run_dir) == [2, 3]


def test_a_copy_of_the_run_that_followed_the_link(made):
    run_dir = made({1: 0.5, 2: 0.3})
    shutil.copytree(run_dir / "checkpoints" / "step_000001", run_dir / "checkpoints" / "best")
    retire(run_dir, keep=1, keep_best=True)
    assert os.readlink(run_dir / "checkpoints" / "best") == "step_000001"


def test_only_the_newest(made):
    run_dir = made({1: 0.9, 2: 0.1, 3: 0.1})
    retire(run_dir, keep=1, keep_best=False)
    assert steps(run_dir) == [3]
    assert not (run_dir / "checkpoints" / "best").exists()


def test_without_scores_none_is_the_best(made):
    run_dir = made({1: None, 2: None, 3: None})
    retire(run_dir, keep=1, keep_best=True)
    assert steps(run_dir) == [3]


def test_what_a_kill_left_is_no_checkpoint(made):
    run_dir = made({1: 0.1})
    for name in (".step_000002.partial", ".step_000000.old"):
        (run_dir / "checkpoints" / name / "state").mkdir(parents=True)
    assert steps(run_dir) == [1]
    remove_leftovers(run_dir)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_000001"]


def test_a_checkpoint_is_replaced_as_a_whole(made):
    run_dir = made({1: 0.1})
    partial = run_dir / "checkpoints" / ".step_000001.partial"
    partial.mkdir()
    (partial / "new").touch()
    publish(partial, run_dir / "checkpoints" / "step_000001")
    remove_leftovers(run_dir)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_000001"]
    assert [path.name for path in checkpoint_dirs(run_dir)[0].iterdir()] == ["new"]


def test_a_damaged_one_is_neither_counted_nor_lost(made):
    run_dir = made({1: 0.1, 2: 0.2})
    for _ in range(2):
        assert set_aside(checkpoint_dirs(run_dir)[-1]).name == "damaged_step_000002"
        assert steps(run_dir) == [1]
        made({2: 0.3})
    retire(run_dir, keep=1, keep_best=False)
    assert steps(run_dir) == [2]
    assert (run_dir / "checkpoints" / "damaged_step_000002" / "counters.json").is_file()
