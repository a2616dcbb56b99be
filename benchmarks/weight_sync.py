"""Seconds of a weight sync, against a copy of the same bytes in memory."""

import tempfile
from statistics import median

from transformers.utils.logging import disable_progress_bar

from alp_megatron.config.schema import Config
from benchmarks.row import Row, compare
from benchmarks.setting import quickstart
from tests.distributed.workers import Workers
from tests.models import make_model

LARGER = dict(
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=16,
    num_attention_heads=8,
    num_key_value_heads=4,
    vocab_size=32000,
    max_position_embeddings=512,
)


def weight_sync(workers: Workers) -> list[Row]:
    config = quickstart()
    rows = [_row("quickstart model", config, workers, rounds=20)]
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        model = config.model.model_copy(update={"path": make_model(directory, **LARGER)})
        larger = config.model_copy(update={"model": model})
        rows.append(_row("random model", larger, workers, rounds=5))
    return rows


def _row(name: str, config: Config, workers: Workers, rounds: int) -> Row:
    result = workers.run("benchmarks.sync_jobs:sync_seconds", config, world_size=2, rounds=rounds)[
        0
    ]
    seconds = result["seconds"]
    gather, transport, whole = (median(seconds[k]) for k in ("gather", "transport", "sync"))
    return Row(
        f"weight sync, {name}",
        "s",
        **compare(seconds["sync"], seconds["copy"]),
        reference_name="a copy of the same bytes by one thread",
        note=f"{result['bytes'] / 1e6:.1f} MB in {config.rollout.dtype} from TP 2: gather and cast "
        f"{gather:.3f} s, transport {transport - gather:.3f} s, load in vLLM "
        f"{whole - transport:.3f} s.",
    )
