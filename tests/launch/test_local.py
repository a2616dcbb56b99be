"""Members on this machine: how many at once, what is said of them, what becomes of them."""

import json
import subprocess
import sys

import pytest

from alp_megatron.config.load import load_config, resolved_yaml
from alp_megatron.errors import RunError, UserError
from alp_megatron.launch import local
from alp_megatron.launch import local as cores
from alp_megatron.launch.local import MemberProgress, cores_of, run_members, runs_at_once
from alp_megatron.launch.members import Member
from tests.support.runs import QUICKSTART, REPO


class FakeProcess:
    """A member that makes a step at each look and ends after its second one; seed 3 fails."""

    alive: list = []
    most = 0

    def __init__(self, member, run_dir):
        self.member, self._run_dir, self._steps = member, run_dir, 0
        self.exit_code = 0
        self.alive.append(self)
        FakeProcess.most = max(FakeProcess.most, len(self.alive))

    def ended(self):
        if self._steps == 2:
            self.alive.remove(self)
            self.exit_code = 1 if self.member.values["seed"] == 3 else 0
            return True
        with open(self._run_dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": self._steps, "reward/mean": 0.25}) + "\n")
        self._steps += 1
        return False

    def interrupt(self):
        self.exit_code = 130

    def wait_or_kill(self):
        self.alive.remove(self)


@pytest.fixture
def members(tmp_path, monkeypatch):
    """Four members of two steps whose processes are fakes."""
    found = [Member(index, {"seed": index}) for index in range(1, 5)]
    text = resolved_yaml(load_config(REPO / QUICKSTART, ["trainer.steps=2"]))
    for member in found:
        (member.run_dir(tmp_path) / "launch").mkdir(parents=True)
        (member.run_dir(tmp_path) / "launch" / "config.yaml").write_text(text)
    monkeypatch.setattr(FakeProcess, "alive", [])
    monkeypatch.setattr(FakeProcess, "most", 0)
    monkeypatch.setattr(local, "MemberProcess", FakeProcess)
    monkeypatch.setattr(local, "_POLL_SECONDS", 0)
    return found


@pytest.mark.parametrize("parallel, most", [(1, 1), (3, 3), (9, 4)])
def test_so_many_at_once_and_a_failed_one_stops_none(tmp_path, members, capsys, parallel, most):
    with pytest.raises(RunError, match="1 of 4 members failed: 'seed=3'"):
        run_members(tmp_path, members, parallel)
    assert (FakeProcess.most, FakeProcess.alive) == (most, [])
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(
        [f"000{i} seed={i} ..." for i in range(1, 5)]
        + [f"000{i} {'failed (1)' if i == 3 else 'finished'}" for i in range(1, 5)]
    )


def test_ctrl_c_ends_the_running_ones(tmp_path, members, monkeypatch):
    shown = []

    def look(_, running):
        shown.append(running)
        if len(shown) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(MemberProgress, "show", look)
    with pytest.raises(KeyboardInterrupt):
        run_members(tmp_path, members, 2)
    assert [member.index for member in shown[0]] == [1, 2] and FakeProcess.alive == []


HOLDER = """
import sys
from pathlib import Path
from alp_megatron.launch import local
with local._locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_command_at_a_time(tmp_path, members):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=REPO) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another process runs its"):
            run_members(tmp_path, members)


def test_the_updating_line(tmp_path, members, monkeypatch, capsys):
    """After 10 s one of four members has made its two steps and another one of its own."""
    clock = [100.0]
    monkeypatch.setattr(local.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    display = MemberProgress(tmp_path, members)
    for member, steps in zip(members, (2, 1), strict=False):
        lines = [json.dumps({"step": step, "reward/mean": 0.25}) + "\n" for step in range(steps)]
        (member.run_dir(tmp_path) / "metrics.jsonl").write_text("".join(lines))
    display.ended(members[0], 0)
    clock[0] += 30
    capsys.readouterr()
    display.show([members[1], members[2]])
    line = capsys.readouterr().out
    assert line.startswith("\r") and len(line) == 160
    # 3 of 8 steps took 30 s: 50 s for the other 5.
    assert line.strip() == (
        "1 of 4 done, 0:00:30 elapsed, about 0:00:50 left "
        "| 0002 seed=2 step 1/2 reward 0.250 | 0003 seed=3 step 0/2"
    )
    display.show([members[1]])
    assert capsys.readouterr().out == ""  # not before a second has passed


def test_runs_at_once_follow_from_the_cores(monkeypatch):
    config = load_config(REPO / QUICKSTART)  # two training processes and two threads of vLLM
    small = load_config(
        REPO / QUICKSTART,
        [
            "model.tensor_model_parallel_size=1",
            "model.sequence_parallel=false",
            "rollout.cpu_threads=1",
        ],
    )
    assert (cores_of(config), cores_of(small)) == (4, 2)
    monkeypatch.setattr(cores, "nvidia_gpus", list)
    for count, wanted in ((1, 1), (8, 2), (15, 3)):
        monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _, n=count: range(n))
        assert runs_at_once([small, config]) == wanted
    assert runs_at_once([small]) == 7
    monkeypatch.setattr(cores, "nvidia_gpus", lambda: ["H100"])
    assert runs_at_once([small]) == 1
