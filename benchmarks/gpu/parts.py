"""The parts of the GPU proof, quick ones first."""

import contextlib
import io

from benchmarks.gpu.fp8 import fp8_products
from benchmarks.gpu.graphs import graph_follows_key, layer_graph_follows_key
from benchmarks.gpu.noise import noise_agrees, noise_bandwidth
from benchmarks.gpu.part import Found, Goal, Part, need
from benchmarks.gpu.rollouts import rollout_parts
from benchmarks.gpu.specs import specs_agree
from benchmarks.gpu.step import step_parts
from benchmarks.gpu.training import fp8_recipes, quickstart


def doctor_is_content() -> Found:
    """What `alp-megatron doctor` prints; it must find that the GPU path can run."""
    need("packaging")
    from alp_megatron.commands.doctor import doctor

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        doctor()
    verdict = printed.getvalue().strip().splitlines()[-1]
    return Found({"verdict": verdict}, [Goal("GPU path can run", "GPU" in verdict, at_least=1)])


PARTS: dict[str, Part] = {
    "doctor": doctor_is_content,
    "noise: the CPU's": noise_agrees,
    "noise: bandwidth": noise_bandwidth,
    "noise: CUDA graph": graph_follows_key,
    "layer: CUDA graph": layer_graph_follows_key,
    "FP8: Transformer Engine against the emulation": fp8_products,
    "specs: Transformer Engine against local": specs_agree,
    **step_parts(),
    **rollout_parts(),
    "quickstart": quickstart,
    "quickstart under every FP8 recipe": fp8_recipes,
}
