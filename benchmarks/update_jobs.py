"""What the training processes do for the measures of the update step."""

from collections.abc import Callable

import torch.distributed as dist

from alp_megatron.config.schema import Config
from alp_megatron.perturbation import NoiseKey
from alp_megatron.trainer.learner import Learner
from alp_megatron.trainer.policy_update import update_policy
from alp_megatron.trajectory import Trajectory
from benchmarks.bare_megatron import BareLoop
from benchmarks.rounds import seconds_by_rounds
from benchmarks.setting import quickstart


def update_seconds(_, rank, trajectories: list[Trajectory], rounds: int) -> dict:
    """Seconds of one update with `alp` and with `bypass`, as each rank sees them."""
    contenders = {m: _trainer(quickstart(m), rank, trajectories) for m in ("alp", "bypass")}
    return seconds_by_rounds(contenders, rounds, meet=dist.barrier)


def throughput_seconds(config, rank, trajectories: list[Trajectory], rounds: int) -> dict:
    """Seconds of one update of the trainer and of bare loops on the same samples."""
    contenders = {
        "trainer": _trainer(config, rank, trajectories),
        "packed": BareLoop(config, trajectories, packed=True).step,
        "padded": BareLoop(config, trajectories, packed=False).step,
    }
    return seconds_by_rounds(contenders, rounds, meet=dist.barrier)


def _trainer(config: Config, rank, trajectories: list[Trajectory]) -> Callable[[], None]:
    learner = Learner(config, rank.device)
    updates = iter(range(2**32))

    def step():
        update_policy(learner, trajectories, None, NoiseKey(config.seed, 0, next(updates)))

    return step
