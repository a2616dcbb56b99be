"""A user's mistake, to a whole process: exit code 2, one sentence, and nothing made or left.

The sentences themselves are tried in one process, in commands/test_refusals.
"""

import re
import shutil

import pytest
from safetensors.torch import load_file

from tests.support.runs import (
    BASE_MODEL,
    QUICKSTART,
    QUIET,
    Command,
    records,
    run,
    the_sentence,
    train_arguments,
)
from tests.support.small_disk import fill, small_disk_at


def test_usage(tmp_path):
    command = run(tmp_path, "train", QUICKSTART, "--no-such-option")
    assert command.process.returncode == 2 and "usage: alp-megatron" in command.err


def test_a_model_that_is_cut_short(tmp_path):
    """Noticed when torch, Megatron and vLLM could be there already."""
    model = shutil.copytree(BASE_MODEL, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    arguments = ["train", QUICKSTART, f"run_dir={tmp_path}/run", f"model.path={model}"]
    command = run(tmp_path, *arguments)
    assert command.process.returncode == 2 and command.out == ""
    assert "model.safetensors has" in the_sentence(command)
    command.check_nothing_is_left(seconds=5)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path):
    with small_disk_at(tmp_path / "disk", "90m") as place:
        yield place


@pytest.mark.slow
def test_no_space_in_mid_run(tmp_path, small_disk):
    run_dir = small_disk / "run"
    arguments = train_arguments(run_dir, 10**6, "trainer.save_interval=2", *QUIET)
    command = Command(tmp_path, *arguments)
    try:
        command.until(lambda: any(run_dir.glob("checkpoints/step_*")))
        fill(small_disk, leaving=600_000)
        assert command.wait(60) == 2
        sentence = the_sentence(command)
        assert re.search(r"it needs [\d.]+ MB, [\d.]+ MB are free", sentence), sentence
        assert "free some space" in sentence and "--resume" in sentence
        command.check_nothing_is_left()
        assert [r["step"] for r in records(run_dir)] == list(range(len(records(run_dir))))
        last = sorted(run_dir.glob("checkpoints/step_*"))[-1]
        assert (
            load_file(last / "hf" / "model.safetensors").keys()
            == load_file(BASE_MODEL / "model.safetensors").keys()
        )
        assert not list(run_dir.rglob("*.partial"))
    finally:
        command.end()
