"""Two real vLLM servers, one of which is killed while it works."""

import os
import signal
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
import torch

from alp_megatron.rollout.engine import SamplingSpec
from alp_megatron.rollout.server import engine as server_engine
from alp_megatron.rollout.server.engine import ServerEngine
from alp_megatron.rollout.server.pool import Server
from alp_megatron.rollout.vllm.engine import VllmEngine
from alp_megatron.weights.transport.memory import SharedMemory
from alp_megatron.weights.verify import digest
from tests.support.models import TINY, hf_logprobs, make_model, weights_of
from tests.support.servers import MAX_LEN, settings_of, start_servers

PROMPTS = [[2 + i % 60, 3, 1 + i % 7] for i in range(400)]
SPEC = SamplingSpec(n=4, temperature=1.0, max_new_tokens=40, stop_token_ids=(), seed=5)
SEQUENCES = [[2, 3, 4, 9, 11], [7, 7, 8], [(5 * i) % 64 for i in range(MAX_LEN)]]


def kill_after(answers: int, victim: Server, pid: int, monkeypatch) -> list[str]:
    """Kill the process when the victim has given that many answers. Returns the addresses of all
    requests that will have been sent.
    """
    asked, answered = [], []
    original = server_engine.post

    async def post(session, url, path, body):
        asked.append(url)
        reply = await original(session, url, path, body)
        answered.append(url)
        if url == victim.url and answered.count(url) == answers:
            os.kill(pid, signal.SIGKILL)
        return reply

    monkeypatch.setattr(server_engine, "post", post)
    return asked


def one_by_one(engine: ServerEngine, server: Server) -> list[list[float]]:
    """The scores that this server gives."""
    others = [other for other in engine.servers if other is not server]
    for other in others:
        other.serving = False
    try:
        return [engine.score([tokens])[0] for tokens in SEQUENCES]
    finally:
        for other in others:
            other.serving = True


def until_healthy(server: Server) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert server.process.returncode is None
        try:
            with urlopen(f"{server.url}/health", timeout=60) as response:
                return response.read()
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not come back")


def engine_of(server: psutil.Process) -> psutil.Process:
    """The process that computes, behind the one that answers."""
    (engine,) = [p for p in server.children() if "spawn_main" in " ".join(p.cmdline())]
    return engine


@pytest.mark.slow
@pytest.mark.parametrize("who", ["server", "its engine"])
def test_one_of_two_is_killed_mid_batch(tmp_path, monkeypatch, capfd, who):
    scratch = Path(tempfile.mkdtemp())
    monkeypatch.setenv("TMPDIR", str(scratch))
    shared_memory = set(os.listdir("/dev/shm"))
    old = make_model(tmp_path / "old", TINY)
    new = make_model(tmp_path / "new", TINY, seed=1)
    transport = SharedMemory(capacity=8192)
    with start_servers(old, transport, "shared_memory", tmp_path, count=2) as engine:
        weights = weights_of(old)
        engine.update_weights(weights.items(), version=1)
        victim = engine.servers[1]
        first_pid, first_url = victim.process.pid, victim.url
        processes = [psutil.Process(first_pid), engine_of(psutil.Process(first_pid))]
        killed = processes[["server", "its engine"].index(who)].pid

        asked = kill_after(20, victim, killed, monkeypatch)
        samples = engine.generate(PROMPTS, SPEC)
        assert len(asked) > len(PROMPTS)  # some of its requests had to be sent again

        # No sample lost, none doubled, and all of them from the weights that were asked for.
        assert [len(of_prompt) for of_prompt in samples] == [SPEC.n] * len(PROMPTS)
        for one in sum(samples, []):
            assert len(one.response_ids) == len(one.rollout_logprobs) == SPEC.max_new_tokens
            assert one.policy_version == 1
        for prompt, of_prompt in list(zip(PROMPTS, samples, strict=True))[::40]:
            exact = hf_logprobs(old, prompt + of_prompt[0].response_ids)[len(prompt) - 1 :]
            assert (torch.tensor(of_prompt[0].rollout_logprobs) - exact).abs().max() < 1e-4
        assert f"rollout server {first_url} is lost" in capfd.readouterr().err

        # It is started again, but gets no work before it has the current weights.
        assert victim.process.pid != first_pid and not victim.serving
        assert not any(process.is_running() for process in processes)
        until_healthy(victim)
        asked.clear()
        engine.generate(PROMPTS[:4], SPEC)
        assert victim.url not in asked

        # Resynced: the same bytes reached both, and both compute the same.
        received = engine.update_weights(weights_of(new).items(), version=2, digests=True)
        assert received == {name: digest(tensor) for name, tensor in weights_of(new).items()}
        assert [server.serving for server in engine.servers] == [True, True]
        scores = [one_by_one(engine, server) for server in engine.servers]
        with VllmEngine(settings_of(new), tmp_path / "own.log") as own:
            fresh = [own.score([tokens])[0] for tokens in SEQUENCES]
        assert scores == [fresh, fresh]
        pids = [server.process.pid for server in engine.servers]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert set(os.listdir("/dev/shm")) == shared_memory
    scratch.rmdir()  # nothing is left in it
