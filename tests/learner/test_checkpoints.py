"""Which checkpoints of a run are kept, and that one which is not what was written is found."""

import json
import os
import random
import shutil
import subprocess

import pytest

from alp_megatron.learner.checkpoints import (
    checkpoint_dirs,
    damage,
    describe,
    publish,
    remove_leftovers,
    retire,
    set_aside,
    write_manifest,
)
from tests.support.marks import slow


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


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "__0_0.distcp").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "state" / ".metadata").write_bytes(b"where everything is")
    (tmp_path / "counters.json").write_text('{"step": 3}')
    write_manifest(tmp_path, {"counters.json": describe(tmp_path / "counters.json")})
    return tmp_path


def test_every_file_is_described_as_sha256sum_does(checkpoint):
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert sorted(files) == ["counters.json", "state/.metadata", "state/__0_0.distcp"]
    for name, entry in files.items():
        said = subprocess.run(["sha256sum", name], cwd=checkpoint, capture_output=True, text=True)
        assert entry["sha256"] == said.stdout.split()[0]
        assert entry["bytes"] == (checkpoint / name).stat().st_size
    assert damage(checkpoint) is None


@pytest.mark.parametrize("name", ["counters.json", "state/.metadata", "state/__0_0.distcp"])
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes where"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes where"),
        (lambda path: flip(path, bit=13), "checksum differs"),
        (lambda path: flip(path, bit=-1), "checksum differs"),
        (lambda path: path.unlink(), "cannot be read (No such file or directory)"),
    ],
    ids=["truncated", "longer", "a bit", "the last bit", "missing"],
)
def test_a_damaged_file_is_named(checkpoint, name, harm, said):
    harm(checkpoint / name)
    assert damage(checkpoint).startswith(name) and said in damage(checkpoint)
    found = [damage(checkpoint, share, 2) for share in range(2)]
    assert sorted(fault is None for fault in found) == [False, True]


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {"a": 3}}', '{"files": [1]}'])
def test_a_damaged_manifest(checkpoint, content):
    (checkpoint / "manifest.json").write_text(content)
    assert damage(checkpoint) == "manifest.json is damaged"


@pytest.mark.parametrize("bits", [40, slow(None)])
def test_every_bit_of_the_manifest_matters(checkpoint, bits):
    """But for spaces and such: then it still describes the files that are there."""
    whole = (checkpoint / "manifest.json").read_bytes()
    entries, all_bits = json.loads(whole), range(8 * len(whole))
    for bit in random.Random(3).sample(all_bits, bits or len(all_bits)):
        flip(checkpoint / "manifest.json", bit)
        if damage(checkpoint) is None:
            assert json.loads((checkpoint / "manifest.json").read_bytes()) == entries
        flip(checkpoint / "manifest.json", bit)


def test_no_manifest(checkpoint):
    (checkpoint / "manifest.json").unlink()
    assert "manifest.json cannot be read" in damage(checkpoint)
