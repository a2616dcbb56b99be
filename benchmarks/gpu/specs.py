"""Transformer Engine's layers on the GPU against the local layers."""

import json
import random
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.gpu.commands import alp_megatron
from benchmarks.gpu.part import Found, Goal, need

MODEL = "configs/models/arithmetic"


def specs_agree() -> Found:
    """Log-probabilities of the same tokens: Transformer Engine in bf16 on the GPU, the local spec
    in float32 on the CPU (the GPU is hidden from it: the local attention has no CUDA path)."""
    need("megatron", "transformer_engine", "numba")
    from alp_megatron.metrics.tokens import mismatch_metrics

    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as directory:
        tokens = Path(directory) / "tokens.jsonl"
        tokens.write_text(
            "".join(
                json.dumps({"sample_id": i, "input_ids": [rng.randrange(3, 64) for _ in range(48)]})
                + "\n"
                for i in range(64)
            )
        )
        local = _score(tokens, "float32", CUDA_VISIBLE_DEVICES="")
        ours = _score(tokens, "bfloat16")
    everyone = np.ones(local.size)
    found = mismatch_metrics(ours, local, everyone, np.zeros(local.size, dtype=int))
    figures = {key.removeprefix("mismatch/"): value for key, value in found.items()}
    goal = Goal("mean |difference| of a log-probability", figures["abs_diff_mean"], at_most=0.05)
    return Found(figures, [goal], f"{local.size} random tokens")


def _score(tokens: Path, dtype: str, **environment: str) -> np.ndarray:
    out = tokens.with_name(f"{dtype}.jsonl")
    arguments = ["--tokens", str(tokens), "--out", str(out), f"model.params_dtype={dtype}"]
    alp_megatron("score", MODEL, *arguments, **environment)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    return np.concatenate([r["logprobs"] for r in sorted(records, key=lambda r: r["sample_id"])])
