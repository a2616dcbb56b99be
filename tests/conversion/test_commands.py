"""The commands as a user runs them: from a shell, verified, killed, resumed."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from alp_megatron.cli import main
from tests.support.models import SHAPES, make_model
from tests.support.runs import BASE_MODEL, REPO
from tests.support.slow_conversion import PIECE_BYTES, TASK_ELEMENTS
from tests.support.trips import assert_same_weights, to_megatron

ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPO)}


def python(cwd, *arguments) -> str:
    """Run to the end without error; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_of(directory) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_there_and_back(tmp_path):
    """A script one way, the command the other, from a directory that is not the repository."""
    layout = ["model.tensor_model_parallel_size=2", "model.sequence_parallel=true"]
    megatron, hf = tmp_path / "megatron", tmp_path / "hf"
    script = REPO / "conversion" / "hf_to_megatron.py"
    output = python(tmp_path, script, "--hf", BASE_MODEL, "--out", megatron, *layout)
    assert "verified all 30 Megatron parameters" in output
    assert "verified log-probabilities" in output
    command = ["-m", "alp_megatron", "convert", "megatron-to-hf"]
    output = python(tmp_path, *command, "--megatron", megatron, "--out", hf, "--workers", 2)
    assert "verified log-probabilities" in output
    ours, theirs = files_of(hf), files_of(BASE_MODEL)
    weights = "model.safetensors"
    assert {n: f for n, f in ours.items() if n != weights} == {
        n: f for n, f in theirs.items() if n != weights
    }
    assert_same_weights(hf, BASE_MODEL)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"), SHAPES["qwen3_moe"])


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
def test_killed_and_resumed(tmp_path, model, direction, capsys, monkeypatch):
    """What is done before the kill is kept, and the whole has the bytes of an unbroken run."""
    converted = to_megatron(model, tmp_path / "converted")
    source = ["--hf", model] if direction == "hf-to-megatron" else ["--megatron", converted]
    out, unbroken = tmp_path / "out", tmp_path / "unbroken"

    def arguments(target):
        return [direction, *source, "--out", str(target), "--workers", "2", "--verify", "off"]

    def to_the_end(target) -> str:
        assert main(["convert", *map(str, arguments(target))]) == 0
        return capsys.readouterr().out

    monkeypatch.setattr("alp_megatron.conversion.to_megatron.PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr("alp_megatron.conversion.to_hf.TASK_ELEMENTS", TASK_ELEMENTS)
    to_the_end(unbroken)
    partial = tmp_path / ".out.partial"
    slowly = [sys.executable, "-m", "tests.support.slow_conversion", "0.3"]
    process = subprocess.Popen([*slowly, *map(str, arguments(out))], cwd=REPO, env=ENVIRONMENT)
    wait_for(lambda: marks(partial), at_least=3)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)
    assert not out.exists()
    times = {path.name: path.stat().st_mtime_ns for path in whole_pieces(partial)}
    assert "going on with" in to_the_end(out)
    assert files_of(out) == files_of(unbroken)
    assert {name: (out / "state" / name).stat().st_mtime_ns for name in times} == times


def marks(partial):
    """What the processes leave when a part of their work is done."""
    return [*partial.glob("state/.piece_*"), *partial.glob(".done_*")]


def whole_pieces(partial):
    numbers = [path.name.removeprefix(".piece_") for path in marks(partial)]
    return [partial / "state" / f"__{n}_0.distcp" for n in numbers if n.isdigit()]


def wait_for(values, at_least):
    deadline = time.monotonic() + 120
    while len(found := values()) < at_least:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_partial_output_of_another_model_is_not_continued(tmp_path, model):
    other = make_model(tmp_path / "other", SHAPES["qwen3_moe"], seed=1)
    partial = tmp_path / ".out.partial"
    (partial / "state").mkdir(parents=True)
    (partial / ".conversion.json").write_text("{}")
    (partial / "state" / ".piece_0").write_bytes(b"of the other model")
    expected = to_megatron(other, tmp_path / "expected")
    assert files_of(to_megatron(other, tmp_path / "out")) == files_of(expected)


def test_interrupted(tmp_path, model):
    """Ctrl-C leaves what is needed to go on, and says no more than that."""
    arguments = ["-m", "tests.support.slow_conversion", "0.3", "hf-to-megatron", "--hf", model]
    process = subprocess.Popen(
        [sys.executable, *arguments, "--out", tmp_path / "out", "--workers", "2"],
        cwd=REPO,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    partial = tmp_path / ".out.partial"
    wait_for(lambda: marks(partial), at_least=1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == "interrupted\n"
    assert marks(partial) and not (tmp_path / "out").exists()
