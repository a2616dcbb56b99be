"""Builds the parts of a run on this rank, and keeps what it must remember between steps."""

from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.hf.files import read_hf_config
from alp_megatron.hf.tensors import HfTensors
from alp_megatron.learner.learner import Learner
from alp_megatron.learner.state import load_checkpoint, newest_whole
from alp_megatron.perturbation import NoiseKey
from alp_megatron.perturbation.noise import assert_keys_agree
from alp_megatron.rollout.engine import RolloutEngine
from alp_megatron.rollout.settings import start_rollout_engine
from alp_megatron.runtime.mesh import Rank, from_first_rank
from alp_megatron.tasks.task import build_task
from alp_megatron.trainer.driver import Driver, stop_tokens
from alp_megatron.trainer.output import Output
from alp_megatron.trainer.sync import sync, verified_sync
from alp_megatron.weights.export import ExportPlan
from alp_megatron.weights.quantize.scheme import Scheme, rollout_scheme
from alp_megatron.weights.quantize.stream import WeightNoise


@dataclass
class Run:
    """A run on this rank; `driver`, `engine` and `output` exist on rank 0 only."""

    config: Config
    run_dir: Path
    learner: Learner
    plan: ExportPlan
    scheme: Scheme | None
    driver: Driver | None = None
    engine: RolloutEngine | None = None
    output: Output | None = None
    first_step: int = 0
    policy_version: int = 0
    base_score: float = 0.0
    latest_score: float = 0.0
    scored_step: int = 0

    def counters(self) -> dict:
        """What a checkpoint must hold beside tensors."""
        return {
            "policy_version": self.policy_version,
            "base_score": self.base_score,
            "latest_score": self.latest_score,
            "scored_step": self.scored_step,
            "seed": self.config.seed,
        }

    def scores(self) -> dict:
        return {"eval/score": self.latest_score, "eval/step": self.scored_step}

    def sync(self) -> None:
        """Send the trainer's weights to the engine. Collective."""
        rollout = self.config.rollout
        noise = (
            WeightNoise(rollout.weight_noise, self.config.seed) if rollout.weight_noise else None
        )
        dtype = self.learner.rollout_dtype
        sync(self.plan, self.engine, dtype, self.scheme, self.policy_version, noise)

    def close(self) -> None:
        if self.output:
            self.output.close()
        if self.engine:
            self.engine.close()


def start_engine(config: Config, rank: Rank) -> RolloutEngine | None:
    """Rank 0 starts vLLM first of all: it loads while the trainer builds its model."""
    if not rank.is_first:
        return None
    log = Path(config.run_dir) / "logs"
    log.mkdir(parents=True, exist_ok=True)
    return start_rollout_engine(config, rank.device.type, log)


def build_run(config: Config, rank: Rank, engine: RolloutEngine | None, resume: bool) -> Run:
    """Model, optimizer and, on rank 0, task and output; the first sync; the base score."""
    learner = Learner(config, rank.device)
    run = Run(
        config,
        Path(config.run_dir),
        learner,
        ExportPlan(learner.chunks, learner.hf["model_type"]),
        rollout_scheme(config),
        engine=engine,
    )
    checkpoint = newest_whole(run.run_dir) if resume else None
    if checkpoint:
        _restore(run, checkpoint)
    assert_keys_agree(NoiseKey(config.seed, run.first_step, 0))
    if rank.is_first:
        task = build_task(config)
        stops = stop_tokens(config, read_hf_config(config.model.path), task.tokenizer)
        run.driver = Driver(config, engine, task, stops)
        run.output = Output(run.run_dir, config, learner, rank, run.first_step if resume else None)
    first_sync(run, fresh=not checkpoint)
    if run.driver and not checkpoint:
        run.base_score = run.latest_score = run.driver.evaluate()
        run.output.say(f"base score {run.base_score:.3f}")
    return run


def _restore(run: Run, checkpoint: Path) -> None:
    counters = load_checkpoint(checkpoint, run.learner)
    if counters["seed"] != run.config.seed:
        raise UserError(
            f"seed={run.config.seed}, but {checkpoint} was made with seed={counters['seed']}: "
            "resume with that seed, or start another run_dir."
        )
    run.first_step = counters["step"]
    for name in ("policy_version", "base_score", "latest_score", "scored_step"):
        setattr(run, name, counters[name])


def first_sync(run: Run, fresh: bool) -> None:
    """A run's first sync is verified; a resumed run restores the version it had. Collective.

    Without an output, as where no run is made, the figures of the verification are not shown.

    Noise in the engine's weights comes after: it would hide what the verification looks for.
    """
    base = HfTensors(run.config.model.path) if fresh else None
    agreement = verified_sync(
        run.learner,
        run.plan,
        run.driver,
        run.learner.rollout_dtype,
        run.scheme,
        run.policy_version,
        base,
    )
    if run.output:
        run.output.say(
            "first weight sync verified: every tensor's hash, and log-probabilities: mean "
            f"|difference| {agreement['mean_abs_diff']:.1e}, largest "
            f"{agreement['max_abs_diff']:.1e} nats, k3 {agreement['k3']:.1e}"
        )
    if run.config.rollout.weight_noise:
        run.sync()
    dist.barrier()


REQUEST = "stop"  # in the run directory: save after this step, and end
ACKNOWLEDGEMENT = "stopped"


def stop_requested(run_dir: Path) -> bool:
    """The same answer on every rank. Collective."""
    return from_first_rank((run_dir / REQUEST).exists())


def acknowledge_stop(run_dir: Path) -> None:
    """Called when the checkpoint is whole."""
    (run_dir / ACKNOWLEDGEMENT).touch()
    (run_dir / REQUEST).unlink(missing_ok=True)
