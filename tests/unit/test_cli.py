import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alp_megatron.cli import _parse
from tests.e2e.runs import REPO

COMMAND = Path(sys.executable).with_name("alp-megatron")


@pytest.mark.parametrize(
    "line",
    [
        "score M a.b=1 c=2 --tokens t --out o",
        "score M --tokens t --out o a.b=1 c=2",
        "score M a.b=1 --tokens t --out o c=2",
        "score --tokens t --out o M a.b=1 c=2",
    ],
)
def test_overrides_may_stand_anywhere(line):
    arguments = _parse(line.split())
    assert arguments.model_dir == "M" and arguments.overrides == ["a.b=1", "c=2"]


def test_overrides_after_an_option():
    arguments = _parse(["train", "c.yaml", "--resume", "trainer.steps=3"])
    assert arguments.resume and arguments.overrides == ["trainer.steps=3"]


@pytest.mark.parametrize(
    "line", ["train c.yaml --resum3", "train c.yaml --resume stray", "doctor a=1", "report d --x=1"]
)
def test_strays_are_refused(line, capsys):
    with pytest.raises(SystemExit) as caught:
        _parse(line.split())
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_whoever_reads_may_leave(capfd):
    reader, writer = os.pipe()
    os.close(reader)
    for buffering in ("", "1"):
        done = subprocess.run(
            [COMMAND, "plan", REPO / "configs/models/qwen2.5-7b/8xh100.yaml"],
            env=os.environ | {"PYTHONUNBUFFERED": buffering},
            stdout=writer,
        )
        assert done.returncode == 128 + signal.SIGPIPE
    os.close(writer)
    assert capfd.readouterr().err == ""
