"""A run directory: which may be used, and that one run alone uses it."""

import json
import socket
import subprocess
import sys
from collections import namedtuple

import pytest

from alp_megatron import files
from alp_megatron.config.load import load_config
from alp_megatron.errors import UserError
from alp_megatron.runtime import run_dir as run_lock
from alp_megatron.runtime.run_dir import leave_to_first_rank, lock_run_dir, prepare_run_dir
from alp_megatron.tasks.arithmetic import write_model_files


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    write_model_files(directory)
    return directory


@pytest.fixture
def config(model, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {{path: '{model}'}}\nrun_dir: '{tmp_path}/runs/first'")
    return load_config(path)


def refusal(config, resume):
    with pytest.raises(UserError) as caught:
        prepare_run_dir(config, resume)
    return str(caught.value)


def test_it_writes_the_configuration_and_the_environment(config):
    run_dir = prepare_run_dir(config, resume=False)
    assert load_config(run_dir / "config.yaml") == config
    text = (run_dir / "environment.json").read_text()
    assert json.loads(text)["packages"]["torch"] and json.loads(text)["layout"]["world_size"] == 1
    assert socket.gethostname() not in text
    names = sorted(path.name for path in run_dir.iterdir())
    assert names == ["config.yaml", "environment.json", "run.lock"]


def test_an_empty_directory_is_taken_and_an_occupied_one_is_not(config, tmp_path):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    run_dir = prepare_run_dir(config, resume=False)
    before = {path: path.read_bytes() for path in run_dir.iterdir()}
    sentence = refusal(config, resume=False)
    assert "--resume" in sentence and "another run_dir" in sentence
    assert {path: path.read_bytes() for path in run_dir.iterdir()} == before


def test_resume_needs_a_run(config):
    assert "no run to resume" in refusal(config, resume=True)
    run_dir = prepare_run_dir(config, resume=False)
    assert prepare_run_dir(config, resume=True) == run_dir  # ended before its first checkpoint


def test_what_a_run_leaves_that_is_killed_in_its_first_write(config, tmp_path, monkeypatch):
    def killed(*arguments):
        raise SystemExit

    run_dir = tmp_path / "runs" / "first"
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", killed)
        patch.setattr(files, "_remove", lambda path: None)
        with pytest.raises(SystemExit):
            prepare_run_dir(config, resume=False)
    assert sorted(path.name for path in run_dir.iterdir()) == [".config.yaml.partial", "run.lock"]
    assert "start without --resume" in refusal(config, resume=True)
    prepare_run_dir(config, resume=False)
    names = sorted(path.name for path in run_dir.iterdir())
    assert names == ["config.yaml", "environment.json", "run.lock"]


def test_a_full_disk_is_refused_before_anything_is_made(config, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    assert "0.00 GB free" in refusal(config, resume=False)
    assert not (tmp_path / "runs").exists()


def test_a_file_in_the_way(config, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").write_text("")
    assert "is a file" in refusal(config, resume=False)
    below = config.model_copy(update={"run_dir": f"{tmp_path}/runs/first/deeper"})
    assert "cannot be written" in refusal(below, resume=False)


HOLDER = """
import sys, time
from pathlib import Path
from alp_megatron.runtime.run_dir import *
run_dir = Path(sys.argv[1])
{body}
print("done", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A function that starts a process which runs `body` and then waits for ever."""
    started = []

    def start(body):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER.format(body=body), tmp_path],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "done\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path, other, monkeypatch):
    monkeypatch.setattr(run_lock, "_WAIT_SECONDS", 0)
    holder = other("lock_run_dir(run_dir)")
    with pytest.raises(UserError, match=f"is in use by another run .process {holder.pid} on "):
        lock_run_dir(tmp_path)
    holder.kill()
    monkeypatch.undo()
    lock_run_dir(tmp_path)  # waits while the kernel ends it


def test_rank_0_outlives_its_command(tmp_path, other, monkeypatch):
    command = other("lock_run_dir(run_dir); leave_to_first_rank(run_dir)")
    rank = other("lock_as_first_rank(run_dir)")
    command.kill()
    command.wait()
    monkeypatch.setattr(run_lock, "_WAIT_SECONDS", 0)
    with pytest.raises(UserError, match="in use"):
        lock_run_dir(tmp_path)
    rank.kill()
    rank.wait()
    lock_run_dir(tmp_path)
    leave_to_first_rank(tmp_path)
