"""Seconds of a weight sync by phase, against a copy of the same bytes in memory."""

import tempfile
from statistics import median

from transformers.utils.logging import disable_progress_bar

from alp_megatron.config.schema import Config
from benchmarks.row import Row, compare
from benchmarks.setting import quickstart
from tests.support.models import make_model
from tests.support.workers import Workers

# The shape of Qwen2.5-0.5B.
HALF_BILLION = dict(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151936,
    max_position_embeddings=512,
)
FASTEST = 2.0  # the goal: at least half a copy's speed


def weight_sync(workers: Workers) -> list[Row]:
    config = quickstart()
    rows = [_row("quickstart model", config, workers, rounds=20)]
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        path = make_model(directory, dtype="bfloat16", **HALF_BILLION)
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": path})})
        for quantization in ("none", "int8", "fp8"):
            rollout = config.rollout.model_copy(update={"quantization": quantization})
            quantized = config.model_copy(update={"rollout": rollout})
            rows.append(_row(f"0.5 B, quantization {quantization}", quantized, workers, rounds=5))
    return rows


def _row(name: str, config: Config, workers: Workers, rounds: int) -> Row:
    result = workers.run("benchmarks.sync_jobs:sync_seconds", config, world_size=2, rounds=rounds)[
        0
    ]
    seconds = result["seconds"]
    gather, quantize, transport, whole = (
        median(seconds[k]) for k in ("gather", "quantize", "transport", "sync")
    )
    bfloat16 = config.rollout.quantization == "none"
    return Row(
        f"weight sync, {name}",
        "s",
        **compare(seconds["sync"], seconds["copy"]),
        reference_name="a copy of the same bytes by one thread",
        at_most=FASTEST if bfloat16 else None,
        note=f"{result['bytes'] / 1e6:.1f} MB of {config.rollout.dtype} from TP 2: gather and cast "
        f"{gather:.3f} s, quantise {quantize - gather:.3f} s, transport of "
        f"{result['sent_bytes'] / 1e6:.1f} MB {transport - quantize:.3f} s, load in vLLM "
        f"{whole - transport:.3f} s.",
    )
