"""What a probe consists of: each method's whole configuration, checked before anything starts."""

from dataclasses import dataclass
from difflib import get_close_matches
from math import gcd
from pathlib import Path

from alp_megatron.check.validate import validate
from alp_megatron.config.layout import data_parallel_size
from alp_megatron.config.load import load_config
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.launch.members import overrides as as_overrides
from alp_megatron.learner.checkpoints import damage
from alp_megatron.studies.methods import NAMES, named_values


@dataclass(frozen=True)
class Probe:
    """What a probe is made of.

    Attributes:
        out: its directory.
        configs: by method; they differ in `objective` and `perturbation` alone.
        updates: how many mini-batches the rollouts are cut into.
        start: the checkpoint of a run that the weights come from; None for model.path.
    """

    out: Path
    configs: dict[str, Config]
    updates: int
    start: Path | None

    @property
    def config(self) -> Config:
        """Is what all methods share; its `objective` and `perturbation` are the first method's."""
        return next(iter(self.configs.values()))


def set_up(
    path: str,
    overrides: list[str],
    methods: str,
    updates: int,
    out: str | None,
    start: str | None,
) -> Probe:
    """Reads the configuration once for each method; what a method's name stands for wins.

    Args:
        methods: names of studies/methods.py, separated by commas.
        out: where the probe goes; `run_dir` with "-probe" after it if not given.
        start: a directory such as RUN/checkpoints/step_000010.

    Raises:
        UserError: one sentence, for whatever cannot run.
    """
    base = load_config(path, overrides)
    directory = Path(out or f"{base.run_dir}-probe")
    layers = read_model_shape(base.model.path).num_hidden_layers
    samples = base.rollout.prompts_per_step * base.rollout.samples_per_prompt
    _check_updates(updates, samples)
    configs = {}
    for name in _names(methods):
        config = load_config(path, [*overrides, *as_overrides(named_values(name, layers))])
        config.run_dir = str(directory)
        configs[name] = _with_updates(config, samples // updates)
    for name, config in configs.items():
        try:
            validate(config)
        except UserError as error:
            raise UserError(f"'{name}': {error}") from error
    checkpoint = Path(start) if start is not None else None
    if checkpoint is not None:
        _check_checkpoint(checkpoint, base)
    return Probe(directory, configs, updates, checkpoint)


def _names(methods: str) -> list[str]:
    names = [word.strip() for word in methods.split(",")]
    for name in names:
        if name not in NAMES:
            near = get_close_matches(name, NAMES, n=1)
            mend = f"did you mean {near[0]}" if near else f"use some of {', '.join(NAMES)}"
            raise UserError(f"--methods names '{name}', which is no method: {mend}.")
    return list(dict.fromkeys(names))


def _check_updates(updates: int, samples: int) -> None:
    if updates < 1 or samples % updates:
        raise UserError(
            f"--updates {updates} does not divide the {samples} samples "
            "(rollout.prompts_per_step x rollout.samples_per_prompt): change one of the three."
        )


def _with_updates(config: Config, batch: int) -> Config:
    """Sets each update's share of the samples, in micro-batches that divide it, without warm-up."""
    trainer = config.trainer
    trainer.global_batch_size = batch
    replicas = data_parallel_size(config)
    if batch % replicas == 0:  # else validate() says so
        trainer.micro_batch_size = gcd(trainer.micro_batch_size, batch // replicas)
    trainer.lr_warmup_steps = 0
    return config


def _check_checkpoint(checkpoint: Path, config: Config) -> None:
    for part in ("counters.json", "state"):
        if not (checkpoint / part).exists():
            raise UserError(
                f"--from {checkpoint} is no checkpoint of a run ({part} is missing): give a "
                "directory such as RUN/checkpoints/step_000010."
            )
    if fault := damage(checkpoint):
        raise UserError(f"--from {checkpoint} is damaged ({fault}): give another checkpoint.")
    if read_model_shape(str(checkpoint / "hf")) != read_model_shape(config.model.path):
        raise UserError(
            f"--from {checkpoint} is of another model than model.path={config.model.path}: set "
            "model.path to the one that its run started from."
        )
