"""What the training processes do for the measures of the update step."""

from collections.abc import Callable
from functools import partial

import torch.distributed as dist

from alp_megatron.config.schema import Config
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.learner.learner import Learner
from alp_megatron.perturbation import NoiseKey
from alp_megatron.trainer.step import update_policy
from benchmarks.bare_megatron import BareLoop
from benchmarks.rounds import seconds_by_rounds
from benchmarks.setting import quickstart


def update_seconds(_, rank, trajectories: list[Trajectory], rounds: int) -> dict:
    """Seconds of one update with `alp` and with `bypass`."""
    contenders = {m: _trainer(quickstart(m), rank, trajectories) for m in ("alp", "bypass")}
    return _seconds(contenders, rounds)


def throughput_seconds(config, rank, trajectories: list[Trajectory], rounds: int) -> dict:
    """Seconds of one update of the trainer and of bare loops on the same samples."""
    contenders = {
        "trainer": _trainer(config, rank, trajectories),
        "packed": BareLoop(config, trajectories, packed=True).step,
        "padded": BareLoop(config, trajectories, packed=False).step,
    }
    return _seconds(contenders, rounds)


def _trainer(config: Config, rank, trajectories: list[Trajectory]) -> Callable[[], None]:
    learner = Learner(config, rank.device)
    updates = iter(range(2**32))

    def step():
        update_policy(learner, trajectories, None, NoiseKey(config.seed, 0, next(updates)))

    return step


def _seconds(contenders: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """A step is done when it is on every rank."""

    def until_all_did(step):
        step()
        dist.barrier()

    timed = {name: partial(until_all_did, step) for name, step in contenders.items()}
    return seconds_by_rounds(timed, rounds, meet=dist.barrier)
