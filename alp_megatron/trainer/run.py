"""Builds the parts of a run on this rank, and keeps what it must remember between steps."""

from dataclasses import dataclass, field
from pathlib import Path

from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.hf.tensors import HfTensors
from alp_megatron.learner.learner import Learner
from alp_megatron.learner.state import load_checkpoint, newest_whole
from alp_megatron.perturbation import NoiseKey
from alp_megatron.perturbation.noise import assert_keys_agree
from alp_megatron.rollout.engine import RolloutEngine
from alp_megatron.rollout.server.start import start_rollout_engine
from alp_megatron.runtime.mesh import Rank, from_first_rank
from alp_megatron.tasks.task import build_task
from alp_megatron.trainer.driver import Driver, stop_tokens
from alp_megatron.trainer.output import Output
from alp_megatron.trainer.sync import WeightSync
from alp_megatron.weights.export import WeightExport


@dataclass
class Run:
    """Holds a run's parts on this rank; `driver`, `engine` and `output` exist on rank 0 only."""

    config: Config
    run_dir: Path
    learner: Learner
    driver: Driver | None = None
    engine: RolloutEngine | None = None
    output: Output | None = None
    first_step: int = 0
    policy_version: int = 0
    base_score: float = 0.0
    latest_score: float = 0.0
    scored_step: int = 0
    export: WeightExport = field(init=False)
    sync: WeightSync = field(init=False)

    def __post_init__(self):
        self.export = WeightExport(self.learner.chunks, self.learner.hf["model_type"])
        self.sync = WeightSync(self.learner, self.export, self.engine)

    def counters(self) -> dict:
        """Returns what a checkpoint must hold beside tensors."""
        return {
            "policy_version": self.policy_version,
            "base_score": self.base_score,
            "latest_score": self.latest_score,
            "scored_step": self.scored_step,
            "seed": self.config.seed,
        }

    def scores(self) -> dict:
        return {"eval/score": self.latest_score, "eval/step": self.scored_step}

    def close(self) -> None:
        if self.output:
            self.output.close()
        if self.engine:
            self.engine.close()


def start_engine(config: Config, rank: Rank) -> RolloutEngine | None:
    """Starts vLLM on rank 0, first of all: it loads while the trainer builds its model."""
    if not rank.is_first:
        return None
    log = Path(config.run_dir) / "logs"
    log.mkdir(parents=True, exist_ok=True)
    return start_rollout_engine(config, rank.device.type, log)


def build_run(config: Config, rank: Rank, engine: RolloutEngine | None, resume: bool) -> Run:
    """Builds model, optimizer and, on rank 0, task and output; makes the first sync and the base
    score. Collective."""
    learner = Learner(config, rank.device)
    run = Run(config, Path(config.run_dir), learner, engine=engine)
    checkpoint = newest_whole(run.run_dir) if resume else None
    if checkpoint:
        _restore(run, checkpoint)
    assert_keys_agree(NoiseKey(config.seed, run.first_step, 0))
    if rank.is_first:
        task = build_task(config)
        stops = stop_tokens(config, learner.hf, task.tokenizer)
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
    """Gives the engine the weights and the version that the run begins with. Collective.

    Without an output, as where no run is made, the figures of the verification are not shown.

    Args:
        fresh: the weights are those of model.path.
    """
    base = HfTensors(run.config.model.path) if fresh else None
    agreement = run.sync.verify(run.policy_version, run.driver, base)
    if run.output:
        run.output.say(
            "first weight sync verified: every tensor's hash, and log-probabilities: mean "
            f"|difference| {agreement['mean_abs_diff']:.1e}, largest "
            f"{agreement['max_abs_diff']:.1e} nats, k3 {agreement['k3']:.1e}"
        )


REQUEST = "stop"  # in the run directory: save after this step, and end
ACKNOWLEDGEMENT = "stopped"


def stop_requested(run_dir: Path) -> bool:
    """Returns the same answer on every rank. Collective."""
    return from_first_rank((run_dir / REQUEST).exists())


def acknowledge_stop(run_dir: Path) -> None:
    """Answers the request, once the checkpoint is whole."""
    (run_dir / ACKNOWLEDGEMENT).touch()
    (run_dir / REQUEST).unlink(missing_ok=True)
