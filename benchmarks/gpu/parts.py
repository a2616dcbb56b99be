"""The parts of the GPU proof, in groups that each fit ten minutes on one H100, start included."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.digests import codes_agree
from benchmarks.gpu.fp8 import fp8_products
from benchmarks.gpu.graphs import graph_follows_key, layer_graph_follows_key
from benchmarks.gpu.ipc import weights_cross
from benchmarks.gpu.learner import delayed_with_recompute, fp32_residual, resumes
from benchmarks.gpu.noise import noise_agrees, noise_bandwidth
from benchmarks.gpu.part import Found, Goal, Part, need
from benchmarks.gpu.rollouts import rollout_parts
from benchmarks.gpu.specs import specs_agree
from benchmarks.gpu.spin import waiting_beside_work
from benchmarks.gpu.step import gpu_work_parts, step_parts
from benchmarks.gpu.training import fp8_recipes, quickstart


def doctor_is_content() -> Found:
    """What `alp-megatron doctor` prints; it must find that the GPU path can run."""
    need("packaging")
    from alp_megatron.commands.doctor import doctor

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        doctor()
    verdict = printed.getvalue().strip().splitlines()[-1]
    return Found({"verdict": verdict}, [Goal("GPU path can run", "GPU" in verdict, at_least=1)])


@dataclass(frozen=True)
class Planned:
    """A part, the group it belongs to, and about how long it takes on an H100."""

    run: Callable[[], Found]
    group: str
    seconds: int


def _planned(group: str, seconds: int, parts: dict[str, Part]) -> dict[str, Planned]:
    return {name: Planned(part, group, seconds) for name, part in parts.items()}


PARTS: dict[str, Planned] = {
    **_planned("first", 10, {"noise: the CPU's": noise_agrees}),
    **_planned("first", 1, {"noise: bandwidth": noise_bandwidth}),
    **_planned("first", 1, {"codes: the CPU's": codes_agree}),
    **_planned("first", 10, {"FP8: Transformer Engine against the emulation": fp8_products}),
    **_planned("first", 15, {"specs: Transformer Engine against transformers": specs_agree}),
    **_planned("first", 10, {"learner: update, save, resume, update": resumes}),
    **_planned("first", 15, {"learner: delayed FP8 with recomputation": delayed_with_recompute}),
    **_planned("first", 2, {"learner: fp32 between the layers": fp32_residual}),
    **_planned("graph", 1, {"noise: CUDA graph": graph_follows_key}),
    **_planned("graph", 1, {"layer: CUDA graph": layer_graph_follows_key}),
    **_planned("speed", 30, step_parts()),
    **_planned("speed", 20, gpu_work_parts()),
    **_planned("speed", 2, {"waiting collectives beside work": waiting_beside_work}),
    **_planned("engine", 15, {"weights: CUDA IPC": weights_cross}),
    **_planned("engine", 120, rollout_parts()),
    **_planned("train", 10, {"doctor": doctor_is_content}),
    **_planned("train", 240, {"quickstart": quickstart}),
    **_planned("train", 1200, {"quickstart under every FP8 recipe": fp8_recipes}),
}


def chosen(words: list[str]) -> dict[str, Planned]:
    """Returns the parts whose group is, or whose name contains, a word; all without words."""
    return {
        name: part
        for name, part in PARTS.items()
        if not words or any(word == part.group or word in name for word in words)
    }
