"""Rollout tokens per second through the engine client against vLLM in the caller's own process."""

import tempfile
import time
from pathlib import Path

from alp_megatron.hf.files import read_hf_config
from alp_megatron.rollout.engine import SamplingSpec
from alp_megatron.rollout.settings import engine_settings
from alp_megatron.rollout.vllm.engine import VllmEngine
from alp_megatron.tasks.task import build_task
from alp_megatron.trainer.driver import stop_tokens
from benchmarks.bare_vllm import BareVllm
from benchmarks.row import Row, compare
from benchmarks.setting import quickstart

ROUNDS, WARM_UP = 12, 2


def rollout_throughput() -> Row:
    """Each round has prompts of its own, the same for both, as each step of a run has."""
    config = quickstart()
    task, settings = build_task(config), engine_settings(config, "cpu")
    stops = stop_tokens(config, read_hf_config(config.model.path), task.tokenizer)
    ours, bare = [], []
    with (
        tempfile.TemporaryDirectory() as scratch,
        VllmEngine(settings, Path(scratch) / "vllm.log") as engine,
        BareVllm(settings, Path(scratch) / "bare.log") as vllm,
    ):
        engine.wait_ready()
        for number in range(-WARM_UP, ROUNDS):
            prompts = [item.prompt_ids for item in task.train_batch(number + WARM_UP)]
            sampling = SamplingSpec(
                n=config.rollout.samples_per_prompt,
                temperature=config.rollout.temperature,
                max_new_tokens=config.rollout.max_new_tokens,
                stop_token_ids=stops,
                seed=number + WARM_UP,
            )
            measures = [
                (ours, lambda p=prompts, s=sampling: _tokens_per_second(engine, p, s)),
                (bare, lambda p=prompts, s=sampling: vllm.tokens_per_second(p, s)),
            ]
            for results, measure in measures[:: 1 if number % 2 else -1]:
                results.append(measure())
    return Row(
        "rollout in the loop",
        "tokens/s",
        **compare(ours[WARM_UP:], bare[WARM_UP:]),
        reference_name="LLM.generate in its own process: same settings, requests and seeds",
        at_least=0.95,
        note=f"{len(prompts)} prompts x {sampling.n} samples with log-probs, from token ids to "
        f"trajectories, {ROUNDS} rounds. The difference is a message each way and the records.",
    )


def _tokens_per_second(engine: VllmEngine, prompts: list, sampling: SamplingSpec) -> float:
    started = time.perf_counter()
    groups = engine.generate(prompts, sampling)
    seconds = time.perf_counter() - started
    return sum(len(t.response_ids) for group in groups for t in group) / seconds
