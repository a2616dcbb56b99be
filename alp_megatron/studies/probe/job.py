"""Does the processes' part of a probe: the same rollouts, then each method from the same start."""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from alp_megatron.config.schema import Config
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.hf.files import read_hf_config
from alp_megatron.learner.learner import Learner
from alp_megatron.learner.state import load_weights
from alp_megatron.metrics.envelope import envelope_width
from alp_megatron.perturbation import NoiseKey
from alp_megatron.perturbation.noise import assert_keys_agree
from alp_megatron.rollout.engine import RolloutEngine
from alp_megatron.runtime.mesh import Rank, from_first_rank
from alp_megatron.studies.probe.files import add_method, read_rollouts, write_rollouts
from alp_megatron.tasks.task import build_task
from alp_megatron.trainer.driver import Driver, stop_tokens
from alp_megatron.trainer.record import sigma_metrics, token_ratios, update_metrics
from alp_megatron.trainer.run import Run, first_sync, start_engine
from alp_megatron.trainer.step import StepResult, UpdateRecord, update_step

_STEP = 0  # whose prompts are sampled, whose data order and noise the updates have


def probe_job(
    config: Config, rank: Rank, out: Path, configs: dict[str, Config], start: Path | None
) -> None:
    """Tries each method from the same start; rank 0 has the engine and writes into `out`.

    Args:
        configs: of the methods still to do, which share all that `config` is used for.
    """
    engine = start_engine(config, rank)
    driver = _driver(config, engine) if engine is not None else None
    assert_keys_agree(NoiseKey(config.seed, _STEP, 0))
    trajectories = _fixed_rollouts(_build(config, rank, driver, start), out, start is None)
    for name, own in configs.items():
        gc.collect()  # the last model and its gradient buffers refer to each other
        run = _build(own, rank, driver, start)
        # Samples, their order and the noise are functions of the seed alone: equal for all methods.
        result = update_step(run.learner, trajectories, _STEP, measure_clean=True)
        metrics = metrics_by_update(result)
        run.sync.push(version=1)
        if driver is not None:
            score = driver.evaluate()
            add_method(out, name, own, metrics, score, token_ratios(trajectories, result.updates))
            print(_line(name, metrics, score), flush=True)
        del run
    if engine is not None:
        engine.close()


def metrics_by_update(result: StepResult) -> list[dict]:
    """Returns the metrics of each update alone, on its own mini-batch."""
    updates = zip(result.minibatches, result.updates, result.sigmas, strict=True)
    return [
        {
            "update": index,
            **update_metrics(minibatch, [update]),
            **_widths(minibatch, update),
            **sigma_metrics(sigmas),
        }
        for index, (minibatch, update, sigmas) in enumerate(updates)
    ]


def _widths(minibatch: list[Trajectory], update: UpdateRecord) -> dict[str, float]:
    """Returns percentile 98 less percentile 2 of the tokens' log ratio (nats), unless skipped."""
    tokens = token_ratios(minibatch, [update])
    if not len(tokens.sample_id):
        return {}
    numerators = {"clean": tokens.clean_logprobs, "perturbed": tokens.perturbed_logprobs}
    return {
        f"envelope/width_{name}": envelope_width(logprobs, tokens.rollout_logprobs)
        for name, logprobs in numerators.items()
    }


def _build(config: Config, rank: Rank, driver: Driver | None, start: Path | None) -> Run:
    """Returns the start: weights, noise scales of sigma0, an optimizer without a past."""
    load: Callable[[list], None] | None = None
    if start is not None:
        load = partial(load_start, start)
    learner = Learner(config, rank.device, load=load)
    engine = None if driver is None else driver.engine
    return Run(config, Path(config.run_dir), learner, driver=driver, engine=engine)


def load_start(start: Path, chunks: list) -> None:
    """Fills the chunks with a checkpoint's weights, noise scales at sigma0. Collective."""
    load_weights(start, chunks)
    with torch.no_grad():
        for chunk in chunks:
            for layer in chunk.decoder.layers:
                layer.log_sigma_scale.zero_()


def _driver(config: Config, engine: RolloutEngine) -> Driver:
    task = build_task(config)
    stops = stop_tokens(config, read_hf_config(config.model.path), task.tokenizer)
    return Driver(config, engine, task, stops)


def _fixed_rollouts(run: Run, out: Path, fresh: bool) -> list[Trajectory]:
    """Returns the rollouts in the directory, or samples them from the start's weights. Collective.

    `fresh` says that these weights are those of model.path.
    """
    first_sync(run, fresh)
    trajectories = []
    if run.driver is not None:
        found = read_rollouts(out)
        if found is None:
            found = run.driver.rollout(_STEP)
            run.driver.reward(_STEP, found)
            write_rollouts(out, found, run.driver.evaluate())
        trajectories = found
    return from_first_rank(trajectories)


def _line(name: str, metrics: list[dict], score: float) -> str:
    def widths(numerator: str) -> str:
        values = [m.get(f"envelope/width_{numerator}", float("nan")) for m in metrics]
        return f"{values[0]:.3f} -> {values[-1]:.3f}"

    return (
        f"{name}: score {score:.3f}; envelope width (nats), first -> last update: "
        f"clean {widths('clean')}, perturbed {widths('perturbed')}"
    )
