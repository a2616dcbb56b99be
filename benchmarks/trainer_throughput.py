"""The trainer's tokens per second against bare Megatron-Core loops."""

from benchmarks.row import Row, compare
from benchmarks.setting import mini_batch, quickstart
from tests.support.workers import Workers

ROUNDS = 40


def trainer_throughput(workers: Workers) -> list[Row]:
    config = quickstart("bypass")
    trajectories = mini_batch(config)
    seconds = workers.run(
        "benchmarks.update_jobs:throughput_seconds",
        config,
        world_size=2,
        trajectories=trajectories,
        rounds=ROUNDS,
    )[0]
    tokens = sum(t.num_tokens for t in trajectories)
    speed = {name: [tokens / s for s in values] for name, values in seconds.items()}
    return [
        Row(
            "trainer, packed reference",
            "tokens/s",
            **compare(speed["trainer"], speed["packed"]),
            reference_name="GPTModel, cross entropy, DDP and distributed optimizer of "
            "Megatron-Core on the same packed rows",
            at_least=0.95,
            note="update_policy with method bypass, from trajectories to the gathered record: "
            "beyond the bare loop it packs rows, makes ratios and gathers the record. The "
            "bare loop's rows are packed beforehand; it borrows this project's attention and "
            "RMSNorm, since Megatron's without Transformer Engine take neither packed rows nor "
            "sequence parallelism.",
        ),
        Row(
            "trainer, padded reference",
            "tokens/s",
            **compare(speed["trainer"], speed["padded"]),
            reference_name="the same bare loop with Megatron-Core's own attention, on padded rows",
            note="Tokens without padding.",
        ),
    ]
