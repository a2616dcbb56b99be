"""A mistake is one sentence with its name and exit code 2, and leaves no output directory."""

import json
import os
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from alp_megatron.cli import main
from tests.support.models import SHAPES, make_model
from tests.support.small_disk import small_disk_at
from tests.support.trips import to_hf, to_megatron

QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A model in several files, and its checkpoint."""
    place = tmp_path_factory.mktemp("pristine")
    single = make_model(place / "single", SHAPES["qwen2"])
    converted = to_megatron(single, place / "megatron")
    return to_hf(converted, place / "hf", converted), converted


@pytest.fixture
def hf(pristine, tmp_path):
    return shutil.copytree(pristine[0], tmp_path / "hf")


@pytest.fixture
def megatron(pristine, tmp_path):
    return shutil.copytree(pristine[1], tmp_path / "megatron")


def refusal(capsys, out, *arguments) -> str:
    """The sentence of the command, which makes nothing beside `out`."""
    before = sorted(out.parent.iterdir())
    code = main(["convert", *map(str, arguments), "--out", str(out)])
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), captured
    assert sorted(out.parent.iterdir()) == before
    return lines[0]


def config_with(**changes):
    def spoil(model_dir):
        path = model_dir / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def tensor_changed(change):
    """Spoils QUERY in its file by `change(tensors)`."""

    def spoil(model_dir):
        weight_map = json.loads((model_dir / "model.safetensors.index.json").read_text())
        path = model_dir / weight_map["weight_map"][QUERY]
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return spoil


def first_file(model_dir):
    return sorted(model_dir.glob("*.safetensors"))[0]


def truncated(model_dir):
    path = first_file(model_dir)
    path.write_bytes(path.read_bytes()[:-100])


def not_safetensors(model_dir):
    path = first_file(model_dir)
    path.write_bytes(bytes(8) + path.read_bytes())


def other_type(tensors):
    tensors[QUERY] = tensors[QUERY].to(torch.int8)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda d: first_file(d).unlink(), "model-00001-of-00004.safetensors is missing"),
        (truncated, "model-00001-of-00004.safetensors has"),
        (not_safetensors, "model-00001-of-00004.safetensors has no safetensors header"),
        (config_with(architectures=["GPT2LMHeadModel"]), "['GPT2LMHeadModel'] is not supported"),
        (config_with(model_type="llama"), "model_type is 'llama'"),
        (config_with(intermediate_size=72), "gate_proj.weight has shape [68, 56]"),
        (config_with(num_hidden_layers=3), "has a tensor model.layers.3"),
        (config_with(num_hidden_layers=5), "has no tensor model.layers.4"),
        (tensor_changed(lambda t: t[QUERY].view(-1)[7:8].fill_(torch.nan)), f"{QUERY} holds NaN"),
        (tensor_changed(lambda t: t[QUERY].view(-1)[7:8].fill_(-torch.inf)), f"{QUERY} holds NaN"),
        (tensor_changed(lambda t: t.pop(QUERY)), f"lacks {QUERY}"),
        (tensor_changed(other_type), f"{QUERY} has the type I8"),
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (shutil.rmtree, "hf is not a directory"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_hugging_face_model(capsys, monkeypatch, tmp_path, hf, spoil, expected, workers):
    monkeypatch.setattr("alp_megatron.conversion.to_megatron.PIECE_BYTES", 20_000)
    spoil(hf)
    arguments = ["hf-to-megatron", "--hf", hf, "--workers", workers, "--verify", "off"]
    assert expected in refusal(capsys, tmp_path / "out", *arguments)


def data_file(megatron_dir):
    return megatron_dir / "state" / "__0_0.distcp"


def cut_short(megatron_dir):
    os.truncate(data_file(megatron_dir), 100_000)


def garbled(megatron_dir):
    content = bytearray(data_file(megatron_dir).read_bytes())
    content[:4] = b"oops"  # the first tensor's
    data_file(megatron_dir).write_bytes(content)


def garbled_metadata(megatron_dir):
    (megatron_dir / "state" / ".metadata").write_bytes(b"oops")


as_qwen3 = config_with(architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=14)
as_llama = config_with(architectures=["LlamaForCausalLM"], model_type="llama", head_dim=14)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda d: data_file(d).unlink(), "__0_0.distcp is missing"),
        (cut_short, "__0_0.distcp is cut short at 100000"),
        (garbled, "embedding.word_embeddings.weight cannot be read"),
        (garbled_metadata, ".metadata cannot be read"),
        (lambda d: (d / "state" / ".metadata").unlink(), "has no .metadata"),
        (config_with(intermediate_size=72), "linear_fc1.weight has shape [4, 136, 56]"),
        (config_with(num_hidden_layers=3), "has shape [4"),
        (config_with(vocab_size=67), "word_embeddings.weight has shape [66, 56]"),
        (as_qwen3, "has a tensor decoder.layers.self_attention.linear_qkv.bias, for which"),
        (as_llama, "has a tensor decoder.layers.self_attention.linear_qkv.bias, for which"),
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (shutil.rmtree, "megatron is not a directory"),
    ],
)
def test_megatron_checkpoint(capsys, tmp_path, megatron, spoil, expected):
    spoil(megatron)
    arguments = ["megatron-to-hf", "--megatron", megatron, "--workers", 1, "--verify", "off"]
    assert expected in refusal(capsys, tmp_path / "out", *arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model.tensor_model_parallel_size=3"], "model.tensor_model_parallel_size=3"),
        (["model.pipeline_model_parallel_size=3"], "model.pipeline_model_parallel_size=3"),
        (["model.expert_model_parallel_size=2"], "model.expert_model_parallel_size=2"),
        (["model.tensor_paralel=2"], "model.tensor_paralel"),
        (["--workers", "0"], "--workers 0"),
    ],
)
def test_settings(capsys, tmp_path, hf, arguments, expected):
    assert expected in refusal(capsys, tmp_path / "o", "hf-to-megatron", "--hf", hf, *arguments)


def test_output(capsys, tmp_path, hf):
    arguments = ["hf-to-megatron", "--hf", hf, "--verify", "off"]
    assert f"--out {hf} exists" in refusal(capsys, hf, *arguments)
    assert main(["convert", *map(str, arguments), "--out", str(tmp_path / "no" / "out")]) == 2
    assert "its directory does not exist" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
    with small_disk_at(tmp_path / "disk", "384k") as place:
        yield place


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("noticed", ["before", "midway"])
def test_no_space(capsys, monkeypatch, hf, megatron, small_disk, noticed, workers):
    if noticed == "midway":  # others filled the disk meanwhile
        usage = namedtuple("usage", "free")(10**12)
        monkeypatch.setattr("alp_megatron.files.shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("alp_megatron.conversion.to_megatron.PIECE_BYTES", 20_000)
    expected = "GB are free" if noticed == "before" else "no space is left"
    out, options = small_disk / "out", ["--workers", workers, "--verify", "off"]
    sentence = refusal(capsys, out, "hf-to-megatron", "--hf", hf, *options)
    assert f"--out {out}" in sentence and expected in sentence
    options += ["--shard-size", "0.0001"]
    sentence = refusal(capsys, out, "megatron-to-hf", "--megatron", megatron, *options)
    assert f"--out {out}" in sentence and expected in sentence
