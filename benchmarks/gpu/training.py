"""The quickstart on the GPU: whole, and under every FP8 recipe."""

import json
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.commands import ONE_GPU, alp_megatron
from benchmarks.gpu.part import Found, Goal, Skip, need

QUICKSTART = "configs/quickstart.yaml"
NEAR = 0.1  # of bf16's score
STEPS = 50


def quickstart() -> Found:
    """`make train` as it stands, on one GPU."""
    summary, records = _train()
    last = records[-1]
    figures = summary | {
        "seconds": sum(record["time/total"] for record in records),
        "rollout_tokens_per_s": last["throughput/rollout_tokens_per_s"],
        "train_tokens_per_s": last["throughput/train_tokens_per_s"],
        "k3": last["mismatch_before/k3"],
    }
    gain = summary["final_score"] - summary["base_score"]
    return Found(figures, [Goal("gain in score", gain, at_least=0.1)])


def fp8_recipes() -> Found:
    """STEPS steps in bf16 and under each recipe that the device can run."""
    from typing import get_args

    from alp_megatron.check.fp8 import unsupported
    from alp_megatron.config.schema import Fp8Config

    capability, cuda = torch.cuda.get_device_capability(), torch.version.cuda or "0"
    recipes = get_args(Fp8Config.model_fields["recipe"].annotation)
    reasons = {recipe: unsupported(recipe, capability, cuda) for recipe in recipes}
    able = [recipe for recipe, reason in reasons.items() if reason is None]
    if not able:
        raise Skip(f"no recipe runs here: {reasons}")
    runs = {recipe: [f"model.fp8.recipe={recipe}"] for recipe in able}
    for recipe in {"tensorwise", "blockwise"} & set(able):
        runs[f"{recipe}, weights held in FP8"] = [*runs[recipe], "model.fp8.param_gather=true"]
    summary, _ = _train(f"trainer.steps={STEPS}")
    figures: dict = {"bf16": summary["final_score"]}
    figures["not_run"] = {recipe: reason for recipe, reason in reasons.items() if reason}
    goals = []
    for name, overrides in runs.items():
        # The delayed recipe's first pass rounds with a scale of 1: the first sync's gate is wide.
        summary, records = _train(
            f"trainer.steps={STEPS}",
            *overrides,
            "rollout.gate_mean_abs_diff=5",
        )
        keys = ("mismatch_before/k3", "fp8/k3", "alp/fp8_surviving_fraction")
        figures[name] = {"score": summary["final_score"]} | {k: records[-1][k] for k in keys}
        distance = abs(summary["final_score"] - figures["bf16"])
        goals.append(Goal(f"{name}: distance of the score from bf16's", distance, at_most=NEAR))
    return Found(figures, goals, f"{STEPS} steps of the quickstart")


def _train(*overrides: str) -> tuple[dict, list[dict]]:
    """The run's summary and its metrics, step by step."""
    need("megatron", "transformer_engine", "vllm")
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        alp_megatron("train", QUICKSTART, f"run_dir={run_dir}", *ONE_GPU, *overrides)
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        summary = json.loads((run_dir / "summary.json").read_text())
    return summary, [json.loads(line) for line in lines]
