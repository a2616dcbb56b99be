"""What a checkpoint costs the training, against a synchronous save of the same bytes."""

import tempfile
from statistics import median

from transformers.utils.logging import disable_progress_bar

from alp_megatron.config.schema import Config
from benchmarks.row import Row, compare
from benchmarks.setting import quickstart
from tests.support.models import make_model
from tests.support.workers import Workers

# 0.1 B parameters: with the optimizer's states more than a gigabyte, all of it in the page cache.
SHAPE = dict(
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=2,
    vocab_size=65536,
    max_position_embeddings=512,
)
ROUNDS = 7


def checkpoint_save(workers: Workers) -> list[Row]:
    """One row for each form of the optimizer's state."""
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        config = quickstart()
        config.model.path = make_model(f"{directory}/model", dtype="bfloat16", **SHAPE)
        config.trainer.keep_checkpoints = 1
        return [
            _row(workers, config, form, f"{directory}/{form}")
            for form in ("fully_reshardable", "dp_reshardable")
        ]


def _row(workers: Workers, config: Config, form: str, directory: str) -> Row:
    config.trainer.distrib_optim_sharding_type = form
    result = workers.run(
        "benchmarks.checkpoint_jobs:save_seconds",
        config,
        world_size=2,
        directory=directory,
        rounds=ROUNDS,
    )[0]
    stall = [s + f for s, f in zip(result["start"], result["finish"], strict=True)]
    return Row(
        f"checkpoint, {form}: the training's stall",
        "s",
        **compare(stall, result["synchronous"]),
        reference_name="dist_checkpointing.save and the Hugging Face export on the main thread, "
        "without a manifest",
        note=f"{result['bytes'] / 1e6:.0f} MB from TP 2, {ROUNDS} rounds. The stall is a copy in "
        f"memory ({median(result['start']):.2f} s) and, steps later, metadata, manifest and rename "
        f"({median(result['finish']):.2f} s); the files are written meanwhile. Of both sides "
        f"{median(result['collect']):.2f} s are Megatron's collection of the optimizer's state.",
    )
