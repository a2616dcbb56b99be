"""vLLM as a script would use it: the reference of the rollouts' throughput.

It has a process of its own, because vLLM's environment variables must be set before it is
imported, and it measures itself there: nothing but `LLM.generate` is in its time.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from alp_megatron.rollout.engine import SamplingSpec
from alp_megatron.rollout.settings import EngineSettings
from alp_megatron.rollout.vllm.arguments import child_environment
from alp_megatron.runtime.launcher import die_with_parent


class BareVllm:
    def __init__(self, settings: EngineSettings, log_path: Path):
        self._channel, theirs = multiprocessing.Pipe()
        with open(log_path, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())],
                env=child_environment(settings, os.environ),
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        self._channel.send(settings)

    def tokens_per_second(self, prompts: list[list[int]], sampling: SamplingSpec) -> float:
        self._channel.send((prompts, sampling))
        return self._channel.recv()

    def __enter__(self) -> "BareVllm":
        return self

    def __exit__(self, *_) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()


def _serve(channel: Connection) -> None:
    import torch
    from vllm import SamplingParams

    from alp_megatron.rollout.vllm.worker import start_vllm

    llm = start_vllm(channel.recv())
    while True:
        prompts, sampling = channel.recv()
        torch.manual_seed(sampling.seed)
        parameters = SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=list(sampling.stop_token_ids),
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
        )
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        started = time.perf_counter()
        requests = llm.generate(inputs, parameters, use_tqdm=False)
        seconds = time.perf_counter() - started
        channel.send(sum(len(o.token_ids) for r in requests for o in r.outputs) / seconds)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    try:
        _serve(Connection(int(sys.argv[1])))
    except EOFError:
        os._exit(0)
