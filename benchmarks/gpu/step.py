"""What ALP costs an update step, and how fast the step is."""

from functools import partial
from statistics import median

import torch

from benchmarks.gpu.models import (
    SAMPLES,
    TOKENS,
    flops_of_an_update,
    model_directory,
    training_config,
)
from benchmarks.gpu.one_rank import one_rank
from benchmarks.gpu.part import Found, Goal, Part, need

ROUNDS = 20
RECIPES = {"7B width": (None, "tensorwise", "blockwise"), "0.5B": (None, "tensorwise")}
# Dense tensor-core peaks of the SXM modules, TFLOP/s (NVIDIA's data sheets), by device name.
BF16_PEAKS = {"H100": 989, "H200": 989, "B200": 2250}


def step_parts() -> dict[str, Part]:
    """One part for each model and precision."""
    return {
        f"step: {model}, {recipe or 'bf16'}": partial(step, model, recipe)
        for model, recipes in RECIPES.items()
        for recipe in recipes
    }


def gpu_work_parts() -> dict[str, Part]:
    return {f"step: the GPU's own work, {model}": partial(gpu_work, model) for model in RECIPES}


def gpu_work(model: str) -> Found:
    """Milliseconds of all kernels of one update, and of the noise's, with `alp` and `bypass`: what
    is left of the update's seconds is the host's."""
    need("megatron", "transformer_engine", "transformers")
    path = model_directory(model)
    with one_rank(training_config(path, "bypass", None)) as rank:
        from benchmarks.gpu.step_jobs import kernel_milliseconds

        figures = {m: kernel_milliseconds(rank, path, m) for m in ("alp", "bypass")}
    return Found(figures, note="one update under torch's profiler")


def step(model: str, recipe: str | None) -> Found:
    """Seconds of an update with method alp over bypass; tokens/s and MFU of bypass.

    MFU is in units of the bf16 peak, under FP8 too, so that the two can be compared.
    """
    need("megatron", "transformer_engine", "transformers")
    path = model_directory(model)
    with one_rank(training_config(path, "bypass", recipe)) as rank:
        from benchmarks.gpu.step_jobs import update_seconds

        seconds = update_seconds(rank, path, recipe, ROUNDS)
    ratio = median(a / b for a, b in zip(seconds["alp"], seconds["bypass"], strict=True))
    bare = median(seconds["bypass"])
    figures = {
        "bypass_s": bare,
        "alp_s": median(seconds["alp"]),
        "tokens_per_s": SAMPLES * TOKENS / bare,
        "tflop_per_s": flops_of_an_update(model) / bare / 1e12,
    }
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in BF16_PEAKS.items() if key in name), None)
    if peak is not None:
        figures["mfu_of_bf16_peak"] = figures["tflop_per_s"] / peak
    note = f"{SAMPLES} samples of {TOKENS} tokens, micro-batches of {SAMPLES // 4}, {ROUNDS} rounds"
    return Found(figures, [Goal("update with ALP / without", ratio, at_most=1.02)], note)
