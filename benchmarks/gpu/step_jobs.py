"""What the training process does for the measures of a step. Runs on one GPU."""

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from alp_megatron.learner.learner import Learner
from alp_megatron.perturbation import NoiseKey
from alp_megatron.trainer.step import update_policy
from benchmarks.gpu.models import samples, training_config
from benchmarks.rounds import seconds_by_rounds


def update_seconds(rank, path: str, recipe: str | None, rounds: int) -> dict:
    """Seconds of an update with `alp` and with `bypass` in each round."""
    steps = {m: _step(training_config(path, m, recipe), rank) for m in ("alp", "bypass")}
    return seconds_by_rounds(steps, rounds, warm_up=3, meet=torch.cuda.synchronize)


def kernel_milliseconds(rank, path: str, method: str) -> dict:
    """The kernels of one update: their number, milliseconds, and those of the noise's."""
    step = _step(training_config(path, method, None), rank)
    for _ in range(4):
        step()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
    kernels = [e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA]
    noise = [e for e in kernels if e.key in ("_add", "_dot")]
    return {
        "kernels": sum(e.count for e in kernels),
        "gpu_ms": sum(e.self_device_time_total for e in kernels) / 1000,
        "noise_kernels_ms": sum(e.self_device_time_total for e in noise) / 1000,
    }


def _step(config, rank):
    learner = Learner(config, rank.device)
    trajectories = samples(learner.policy_config.vocab_size)
    updates = iter(range(2**32))

    def step():
        update_policy(learner, trajectories, None, NoiseKey(1, 0, next(updates)))
        torch.cuda.synchronize()

    return step
