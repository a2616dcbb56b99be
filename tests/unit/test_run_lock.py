"""Two processes and one run directory."""

import subprocess
import sys

import pytest

from alp_megatron.errors import UserError
from alp_megatron.runtime import run_dir as run_lock
from alp_megatron.runtime.run_dir import leave_to_first_rank, lock_run_dir

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
