"""Training against servers: of its own, and started by `alp-megatron serve`."""

import re
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from tests.support.runs import QUICKSTART, QUIET, Command, records, run, train_arguments

SERVER = ["rollout.engine=server", "rollout.transport=directory"]


def address(command: Command) -> str | None:
    found = re.search(r"^serving .* at (http://\S+)$", command.out, re.MULTILINE)
    return found and found[1]


@pytest.mark.slow
def test_training_with_served_weights(tmp_path):
    """What the server samples is on the policy, step after step; it outlives the run."""
    served = Command(tmp_path, "serve", QUICKSTART, *SERVER)
    try:
        url = served.until(lambda: address(served))
        taken = run(tmp_path, "serve", QUICKSTART, *SERVER, "--port", url.rsplit(":", 1)[1])
        assert taken.process.returncode == 2 and "choose another port" in taken.err

        urls = [*SERVER, f"rollout.server_urls=[{url}]"]
        trained = run(tmp_path, *train_arguments(tmp_path / "run", 3, *QUIET, *urls))
        assert trained.process.returncode == 0, trained.text()
        metrics = records(tmp_path / "run")
        assert [record["policy_version/lag_max"] for record in metrics] == [0, 0, 0]
        assert all(record["mismatch_before/k3"] < 1e-3 for record in metrics)
        assert list((tmp_path / "run" / "logs").iterdir()) == []  # the weights were there

        served.process.send_signal(signal.SIGTERM)
        assert served.wait(30) == 128 + signal.SIGTERM
        served.check_nothing_is_left()
    finally:
        served.end()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["command", "rank 0"])
def test_no_server_outlives_a_killed_run(tmp_path, victim):
    scratch = tempfile.mkdtemp()
    arguments = train_arguments(tmp_path / "run", 10**6, *QUIET, "rollout.engine=server")
    command = Command(tmp_path, *arguments, TMPDIR=scratch)
    try:
        command.until(lambda: records(tmp_path / "run"))
        command.member(victim).send_signal(signal.SIGKILL)
        command.check_nothing_is_left()
        assert not list(Path(scratch).glob("alp-vllm-*"))
    finally:
        command.end()
        shutil.rmtree(scratch)


@pytest.mark.slow
def test_codes_and_scales_reach_servers_of_its_own(tmp_path):
    """The run itself compares every tensor's hash, and log-probabilities, at its first sync."""
    overrides = ["rollout.engine=server", "rollout.num_servers=2", "rollout.quantization=int8"]
    trained = run(tmp_path, *train_arguments(tmp_path / "run", 2, *QUIET, *overrides))
    assert trained.process.returncode == 0, trained.text()
    assert "first weight sync verified" in trained.out
    metrics = records(tmp_path / "run")
    assert [record["policy_version/lag_max"] for record in metrics] == [0, 0]
    assert all(1e-6 < record["mismatch_before/k3"] < 1e-2 for record in metrics)
    assert sorted(path.name for path in (tmp_path / "run" / "logs").iterdir()) == [
        "vllm-0.log",
        "vllm-1.log",
    ]
