"""`alp-megatron quantize`: ModelOpt's codes, in a checkpoint that plain vLLM loads."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alp_megatron import files
from alp_megatron.cli import main
from alp_megatron.conversion import quantize
from alp_megatron.weights.quantize.codes import quantize_fp8, quantize_fp8_blocks
from tests.support.models import make_model
from tests.support.runs import REPO

UP = "model.layers.1.mlp.up_proj.weight"
E4M3 = torch.float8_e4m3fn
OURS = {"fp8": quantize_fp8, "fp8_block": quantize_fp8_blocks}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """bfloat16, with rows that are awkward to scale: of zeros, tiny, with one large element."""
    sizes = dict(hidden_size=256, intermediate_size=384, num_hidden_layers=2)
    directory = tmp_path_factory.mktemp("source") / "model"
    make_model(directory, seed=5, dtype="bfloat16", tie_word_embeddings=False, **sizes)
    vary_scales(directory)
    spoil(directory, 3, 0)
    spoil(directory, 4, 1e-30)
    spoil(directory, (5, 7), 3.0)
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 128}')
    return directory


@pytest.fixture(scope="module")
def ragged(tmp_path_factory) -> Path:
    """Keys and values of 64 rows, which fp8_block cannot hold, and an o_proj of a single block."""
    directory = tmp_path_factory.mktemp("ragged") / "model"
    sizes = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=2)
    make_model(directory, seed=6, dtype="bfloat16", **sizes)
    vary_scales(directory)
    return directory


@pytest.fixture(scope="module")
def made(source, ragged, tmp_path_factory) -> Path:
    """What modelopt_job makes."""
    directory = tmp_path_factory.mktemp("made")
    spoilt = shutil.copytree(source, directory.with_name("spoilt"))
    spoil(spoilt, (2, 3), torch.nan)
    python("modelopt_job", source, ragged, spoilt, directory)
    return directory


@pytest.fixture(scope="module")
def said(made) -> dict:
    return json.loads((made / "said.json").read_text())


def vary_scales(model: Path) -> None:
    """Rows, and blocks of rows and columns, of very different magnitudes: a scale that is taken
    for another one shows."""
    generator = torch.Generator().manual_seed(7)
    weights = load_file(model / "model.safetensors")
    for name in filter(linear, weights):
        n, k = weights[name].shape
        rows = torch.rand(n, 1, generator=generator) * 1.5 - 1
        columns = torch.rand(-(-k // 128), generator=generator).repeat_interleave(128)[:k]
        weights[name] = (weights[name] * torch.exp(rows + columns - 0.5)).bfloat16()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def spoil(model: Path, place, value: float) -> None:
    weights = load_file(model / "model.safetensors")
    weights[UP][place] = value
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def python(job: str, *arguments, stdin: str = "") -> str:
    """The last line that a job in tests/support prints."""
    result = subprocess.run(
        [sys.executable, "-m", f"tests.support.{job}", *arguments],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        input=stdin,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.rpartition("\n")[0].rpartition("\n")[2]


def quantization_of(model: Path) -> dict:
    return json.loads((model / "config.json").read_text())["quantization_config"]


def linear(name: str) -> bool:
    return name.endswith("_proj.weight")


@pytest.mark.parametrize("name", OURS)
def test_it_is_what_modelopt_makes_of_the_whole_model(made, name):
    ours, theirs = made / name, made / f"{name}-whole"
    weights, expected = (load_file(d / "model.safetensors") for d in (ours, theirs))
    assert weights.keys() == expected.keys()
    for weight, tensor in expected.items():
        assert (weights[weight].dtype, weights[weight].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(weights[weight].view(torch.uint8), tensor.view(torch.uint8)), weight
    config, as_theirs = (quantization_of(d) for d in (ours, theirs))
    assert set(as_theirs.pop("ignore")) - {"model.embed_tokens"} == set(config.pop("ignore"))
    assert config == as_theirs
    config, as_theirs = (
        json.loads((d / "hf_quant_config.json").read_text()) for d in (ours, theirs)
    )
    as_theirs["quantization"]["exclude_modules"] = config["quantization"]["exclude_modules"]
    assert config == as_theirs


@pytest.mark.parametrize("name", OURS)
def test_rollouts_have_the_same_codes_and_scales(source, made, name):
    given, theirs = (load_file(d / "model.safetensors") for d in (source, made / name))
    for weight in filter(linear, given):
        codes, scales = OURS[name](given[weight])
        assert torch.equal(codes.view(torch.uint8), theirs[weight].view(torch.uint8)), weight
        of_zeros = (scales == 2.0**-23).flatten()  # any scale will do for those: ModelOpt's is 1
        assert of_zeros.sum() == (name == "fp8" and weight == UP)
        differ = scales.flatten() != theirs[weight + "_scale"].flatten()
        assert torch.equal(differ, of_zeros), weight


@pytest.mark.parametrize("name", OURS)
def test_all_else_is_kept(source, made, said, name):
    given, theirs = (load_file(d / "model.safetensors") for d in (source, made / name))
    for weight in given:
        assert linear(weight) or torch.equal(theirs[weight], given[weight]), weight
    kept = "tokenizer_config.json"
    assert (made / name / kept).read_text() == (source / kept).read_text()
    assert said[name] == [0, f"{made / name}: 14 of 14 linear weights in {name}\n", ""]


def test_layers_that_do_not_fit_are_named(made, said):
    assert said["ragged"][1].endswith("8 of 14 linear weights in fp8_block\n")
    weights = load_file(made / "ragged" / "model.safetensors")
    excluded = set(quantization_of(made / "ragged")["ignore"])
    unquantised = {
        w.removesuffix(".weight") for w in weights if linear(w) and w + "_scale" not in weights
    }
    assert len(unquantised) == 6 and excluded == unquantised | {"lm_head"}


def test_weights_that_are_not_finite(said):
    code, out, err = said["spoilt"]
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("error: ") and UP in err
    assert said["made"] == ["fp8", "fp8_block", "ragged"]


def dequantised(codes, scales) -> torch.Tensor:
    """In float32, each code times the scale of its row or of its 128 x 128 block."""
    if scales.dim() == 1:
        return codes.float() * scales[:, None]
    grid = scales[:, 0, :, 0].repeat_interleave(128, 0).repeat_interleave(128, 1)
    return codes.float() * grid[: codes.shape[0], : codes.shape[1]]


def swapped(scales) -> torch.Tensor:
    """Each scale at its neighbour's place."""
    return scales.flatten().roll(1).view(scales.shape)


class QuantisedLinear(torch.nn.Module):
    """The layer as the format defines it, in float32; `channels` of a token share a scale."""

    def __init__(self, weight, bias, channels: int):
        super().__init__()
        self.weight, self.bias, self.channels = weight, bias, channels

    def forward(self, x):
        parts = x.float().unflatten(-1, (-1, self.channels))
        scales = parts.abs().amax(-1, keepdim=True) / 448
        x = ((parts / scales).to(E4M3).float() * scales).flatten(-2)
        return torch.nn.functional.linear(x, self.weight, self.bias)


def hf_scores(source: Path, quantised: Path, sequences, change=lambda scales: scales) -> np.ndarray:
    """transformers' in float32, its linear layers those of the quantised checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    made = load_file(quantised / "model.safetensors")
    for name in [name for name in made if name + "_scale" in made]:
        codes, scales = made[name], change(made[name + "_scale"])
        path = name.removesuffix(".weight")
        parent, _, leaf = path.rpartition(".")
        channels = codes.shape[1] if scales.dim() == 1 else 128
        bias = model.get_submodule(path).bias
        layer = QuantisedLinear(dequantised(codes, scales), bias, channels)
        setattr(model.get_submodule(parent), leaf, layer)
    with torch.no_grad():
        logprobs = model(torch.tensor(sequences)).logits[:, :-1].double().log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(sequences)[:, 1:, None])[..., 0].numpy()


def check_vllm(source: Path, quantised: Path, *portable: str) -> None:
    """vLLM computes what the codes and scales say."""
    rng = random.Random(0)
    sequences = [[rng.randrange(64) for _ in range(48)] for _ in range(8)]
    said = python("plain_vllm", quantised, *portable, stdin=json.dumps(sequences))
    theirs = np.array(json.loads(said))
    error = np.abs(theirs - hf_scores(source, quantised, sequences)).mean()
    # Its bfloat16 between the layers moves an activation to the neighbouring code now and then.
    wrong = np.abs(theirs - hf_scores(source, quantised, sequences, swapped)).mean()
    assert error < 0.25 and error < wrong / 5, (error, wrong)


def test_plain_vllm_loads_fp8(source, made):
    check_vllm(source, made / "fp8")


@pytest.mark.slow
def test_vllm_loads_fp8_block_of_some_layers(ragged, made):
    check_vllm(ragged, made / "ragged", "portable")


@pytest.fixture
def model(source, tmp_path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(source, tmp_path / "model"))


@pytest.fixture
def refused(tmp_path, capsys):
    def sentence(*arguments) -> str:
        capsys.readouterr()  # what made the model spoke too
        before = sorted(tmp_path.rglob("*"))
        assert main(["quantize", *map(str, arguments)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return said.err

    return sentence


def test_no_such_model(tmp_path, refused):
    gone = tmp_path / "gone"
    assert f"{gone} is not a directory" in refused("--hf", gone, "--out", tmp_path / "out")


def test_wrong_architecture(model, tmp_path, refused):
    config = json.loads((model / "config.json").read_text()) | {"architectures": ["T5Model"]}
    (model / "config.json").write_text(json.dumps(config))
    assert "T5Model" in refused("--hf", model, "--out", tmp_path / "out")


def test_no_layer_fits(tmp_path, refused):
    make_model(tmp_path / "small")
    said = refused("--hf", tmp_path / "small", "--out", tmp_path / "out", "--format", "fp8_block")
    assert "--format fp8_block holds no layer of this model" in said


@pytest.mark.parametrize("name", ["int8", "nvfp4", "fp5"])
def test_format_that_is_not_offered(model, tmp_path, refused, name):
    said = refused("--hf", model, "--out", tmp_path / "out", "--format", name)
    assert f"--format {name} is not offered" in said and "use fp8 or fp8_block" in said


def test_output_exists(model, tmp_path, refused):
    (tmp_path / "out").mkdir()
    said = refused("--hf", model, "--out", tmp_path / "out")
    assert f"--out {tmp_path / 'out'} exists" in said


def test_no_space(model, tmp_path, refused, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    assert "free some space" in refused("--hf", model, "--out", tmp_path / "out")


def test_modelopt_is_missing(model, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(quantize, "installed_version", lambda _: None)
    said = refused("--hf", model, "--out", tmp_path / "out")
    assert "found none: run `pip install nvidia-modelopt==" in said
