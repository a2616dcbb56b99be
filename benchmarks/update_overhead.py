"""What the perturbation costs an update step."""

from benchmarks.row import Row, compare
from benchmarks.setting import mini_batch, quickstart
from tests.support.workers import Workers

ROUNDS = 40


def update_overhead(workers: Workers) -> Row:
    config = quickstart("alp")
    seconds = workers.run(
        "benchmarks.update_jobs:update_seconds",
        config,
        world_size=2,
        trajectories=mini_batch(config),
        rounds=ROUNDS,
    )[0]
    return Row(
        "update step with ALP",
        "s/update",
        **compare(seconds["alp"], seconds["bypass"]),
        reference_name="update_policy with method bypass",
        at_most=1.05,
        note=f"Quickstart model, TP 2 with sequence parallelism, {config.trainer.global_batch_size}"
        f" samples in micro-batches of {config.trainer.micro_batch_size}, {ROUNDS} rounds. "
        "The difference is the noise, made in the forward and again in the backward pass: about "
        "half in the kernels, half in the calls around them.",
    )
