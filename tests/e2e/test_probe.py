"""`alp-megatron probe` with the real engine: reproducible, resumable, from a run's checkpoint."""

import hashlib
import json

import pytest

from alp_megatron.metrics.tokens import TokenRatios
from tests.support.runs import QUICKSTART, QUIET, SMALL, Command, the_sentence, train_arguments

pytestmark = pytest.mark.slow
UPDATES = 4
# One process, so that a busy machine does not keep two waiting for each other.
ALONE = ["model.tensor_model_parallel_size=1", "model.sequence_parallel=false"]
PROBE = ["probe", QUICKSTART, "--updates", str(UPDATES), *SMALL, *ALONE, "trainer.lr=3e-4"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("probe")


def run(directory, *arguments, code=0):
    """The command, which has ended with that exit code."""
    command = Command(directory, *arguments)
    assert command.wait(900) == code, command.text()
    return command


@pytest.fixture(scope="module")
def whole(directory):
    """Three methods in one go."""
    command = run(directory, *PROBE, "--methods", "bypass,alp,grpo", "--out", directory / "whole")
    assert command.err == ""
    command.check_nothing_is_left(seconds=5)
    return directory / "whole"


def record(out):
    return json.loads((out / "probe.json").read_text())


def files(out):
    """What must be the same, bit by bit."""
    names = ["rollouts.jsonl", *(f"tokens/{path.name}" for path in (out / "tokens").iterdir())]
    return {name: (out / name).read_bytes() for name in sorted(names)}


def test_what_a_probe_leaves(whole):
    found = record(whole)
    lines = (whole / "rollouts.jsonl").read_bytes()
    assert found["rollouts"]["sha256"] == hashlib.sha256(lines).hexdigest()
    assert found["rollouts"]["samples"] == lines.count(b"\n") == 32
    assert list(found["methods"]) == ["bypass", "alp", "grpo"]
    assert (whole / "figures" / "figure3.png").read_bytes()[:4] == b"\x89PNG"
    for name, result in found["methods"].items():
        updates = result["updates"]
        assert [u["update"] for u in updates] == list(range(UPDATES))
        tokens = TokenRatios.load(whole / "tokens" / f"{name}.npz")
        assert len(tokens.update) == found["rollouts"]["tokens"]
        assert 0 <= result["final_score"] <= 1
        # The policy moves away from the one that sampled.
        assert updates[-1]["mismatch_during_clean/k3"] > 5 * updates[0]["mismatch_during_clean/k3"]
        noisy = (
            updates[0]["mismatch_during_perturbed/k3"] > 2 * updates[0]["mismatch_during_clean/k3"]
        )
        assert noisy == (name == "alp")
    first = [
        result["updates"][0]["mismatch_during_clean/k3"] for result in found["methods"].values()
    ]
    assert first[0] == first[1] == first[2]


def test_methods_one_at_a_time_give_the_same_numbers(whole, directory):
    """In another order as well; the second command finds the rollouts of the first."""
    out = directory / "parts"
    for methods in ("grpo", "alp,bypass"):
        run(directory, *PROBE, "--methods", methods, "--out", out)
    assert files(out) == files(whole)
    there, here = record(whole), record(out)
    assert there["rollouts"] == here["rollouts"]
    assert there["start_score"] == here["start_score"]
    assert there["methods"] == here["methods"]


def test_a_finished_probe_only_draws(whole, directory):
    before = record(whole)
    (whole / "figures" / "figure3.png").unlink()
    command = run(directory, *PROBE, "--methods", "alp,bypass", "--out", whole)
    assert command.out.splitlines()[-1] == str(whole / "figures" / "figure3.png")
    assert (whole / "figures" / "figure3.png").is_file()
    assert record(whole) == before


def test_from_a_run_s_checkpoint(whole, directory):
    """Made by two processes, which split the layers between them."""
    run_dir = directory / "run"
    run(directory, *train_arguments(run_dir, 1, "trainer.lr=1e-3", *QUIET))
    checkpoint = run_dir / "checkpoints" / "step_000001"
    arguments = ["--methods", "bypass", "--from", checkpoint, "--out"]
    run(directory, *PROBE, *arguments, directory / "later")
    later, base = record(directory / "later"), record(whole)
    assert later["of"]["from"] == str(checkpoint)
    assert later["rollouts"]["sha256"] != base["rollouts"]["sha256"]
    # It starts where the run stood: as close to its own engine as any start.
    assert later["methods"]["bypass"]["updates"][0]["mismatch_during_clean/k3"] < 1e-3
    refused = run(directory, *PROBE, *arguments, whole, code=2)
    assert f"{whole} holds a probe with --from=null, not" in the_sentence(refused)
