"""Quantised engines, updated in place: against fresh ones, and against transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

from alp_megatron.rollout.vllm.arguments import child_environment
from tests.support.marks import slow_unless
from tests.support.models import make_model
from tests.support.quantized_engines import CASES, MODELS, SEQUENCES, Case, settings
from tests.support.runs import REPO


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("quantized")
    for name, shape in MODELS.items():
        for seed, which in enumerate(("old", "new")):
            make_model(directory / f"{name}-{which}", shape, seed=seed)
    return directory


# Every format and every model; the others cost two engines each.
SLOW = {"int8 float32 tied", "int4 bfloat16 tied"}


@pytest.fixture(scope="module")
def engine_of(directory):
    """A case's name -> what its engines said. The default ones are played together."""
    said = {}

    def play(*names):
        environment = child_environment(settings(directory, CASES[names[0]]), os.environ)
        with open(directory / "vllm.log", "w") as log:
            process = subprocess.run(
                [sys.executable, "-m", "tests.support.quantized_engines", directory, *names],
                env=environment,
                cwd=REPO,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=300,
            )
        assert process.returncode == 0, (directory / "vllm.log").read_text()[-3000:]
        said.update(json.loads(process.stdout.splitlines()[-1]))

    def get(name):
        if name not in said:
            play(*([name] if name in SLOW else [n for n in CASES if n not in SLOW]))
        return said[name]

    return get


def flat(scores: list[list[float]]) -> torch.Tensor:
    return torch.tensor(sum(scores, []), dtype=torch.float64)


@pytest.mark.parametrize("name", [slow_unless(n not in SLOW, n) for n in CASES])
def test_updated_in_place_equals_a_fresh_engine(engine_of, name):
    engine = engine_of(name)
    assert engine["received"] == engine["sent"]
    assert engine["after"] == engine["fresh"] == engine["again"]
    assert (flat(engine["after"]) - flat(engine["before"])).abs().max() > 0.1


def rounded_activations(x: torch.Tensor, quantization: str) -> torch.Tensor:
    """What the format makes of a linear layer's input [.., k]: codes x scales."""
    if quantization == "int8":
        scales = x.abs().amax(-1, keepdim=True) / 127
        return (x / scales).round() * scales
    k = x.shape[-1]
    size = 128 if quantization == "fp8_block" else k
    parts = torch.nn.functional.pad(x, (0, -k % size)).unflatten(-1, (-1, size))
    scales = (parts.abs().amax(-1, keepdim=True) / 448).clamp_min(1e-10)
    codes = (parts / scales).clamp(-448, 448).to(torch.float8_e4m3fn)
    return (codes.float() * scales).flatten(-2)[..., :k]


def decoded(directory: Path, case: Case) -> dict[str, torch.Tensor]:
    """{weight: float32 tensor} of what is quantised in the exported directory, as transformers
    and compressed-tensors decode it; they take a block at an edge for one of another size."""
    exported = directory / case.name
    if case.quantization == "fp8_block":
        stored = load_file(exported / "model.safetensors")
        scales = {n.removesuffix("_scale"): t for n, t in stored.items() if n.endswith("_scale")}
        return {
            name: stored[name].float()
            * scale.repeat_interleave(128, 0)[: stored[name].shape[0]]
            .repeat_interleave(128, 1)[:, : stored[name].shape[1]]
            for name, scale in scales.items()
        }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        exported,
        dtype=torch.float32,
        quantization_config=CompressedTensorsConfig(dequantize=True),
    )
    return {
        f"{name}.weight": module.weight.detach()
        for name, module in model.named_modules()
        if hasattr(module, "quantization_scheme")
    }


def reference(directory: Path, case: Case, dtype=torch.float32, activations=True) -> torch.Tensor:
    """transformers' log-probabilities, with the rounding of activations or without."""
    model = AutoModelForCausalLM.from_pretrained(
        directory / f"{case.model}-new", dtype=dtype, experts_implementation="eager"
    )
    weights = decoded(directory, case)
    assert weights and not model.load_state_dict(weights, strict=False).unexpected_keys
    if activations and case.quantization != "int4":
        for name in weights:
            model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
                lambda _, inputs: rounded_activations(inputs[0].float(), case.quantization).to(
                    dtype
                )
            )
    scores = []
    for tokens in SEQUENCES:
        ids = torch.tensor([tokens])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double().log_softmax(-1)
        scores.append(logits.gather(1, ids[0, 1:, None])[:, 0])
    return torch.cat(scores)


@pytest.mark.parametrize(
    "name", [slow_unless(n not in SLOW, n) for n, of in CASES.items() if of.quantization != "none"]
)
def test_equals_transformers(engine_of, directory, name):
    """float32: nothing but the stated rounding of weights and activations lies between; a token
    may differ more where a sum's last bit moves an activation to the next code. bfloat16: as far
    from that as another implementation in bfloat16 is."""
    case = CASES[name]
    exact = reference(directory, case)
    off = (flat(engine_of(name)["after"]) - exact).abs()
    if case.dtype == "float32":
        # Which tokens come after a moved code depends on the processor's order of summation.
        assert off.quantile(0.25) < 1e-5
        if case.quantization == "int4":
            assert off.mean() < 1e-2
        else:  # the rounding of activations can be told, and is the same
            rounding = (reference(directory, case, activations=False) - exact).abs().mean()
            assert rounding > 1e-3 and off.mean() < rounding / 4
    else:
        assert off.mean() < 1.5 * (reference(directory, case, torch.bfloat16) - exact).abs().mean()
