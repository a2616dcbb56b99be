"""A model of 1 GB, and how much memory a command takes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file

from alp_megatron.hf.shape import read_model_shape
from tests.support.runs import REPO

MEMORY_LIMIT = 400e6  # bytes above the start, of a model of 1.02 GB

_CONFIG = dict(
    architectures=["Qwen2ForCausalLM"],
    model_type="qwen2",
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=20,
    num_attention_heads=16,
    num_key_value_heads=4,
    vocab_size=100_001,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    dtype="bfloat16",
)


def make_large_model(directory: Path) -> Path:
    """0.51 billion random numbers in bf16, in one file; the embedding is a fifth of it."""
    (directory / "config.json").write_text(json.dumps(_CONFIG))
    shapes = read_model_shape(directory).tensor_shapes()
    generator = torch.Generator().manual_seed(0)
    numbers = torch.empty(1 << 24, dtype=torch.bfloat16).normal_(generator=generator)
    tensors = {}
    for name, shape in shapes.items():
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        for number, part in enumerate(tensor.view(-1).split(len(numbers))):
            part.copy_(numbers[: len(part)].roll(len(tensors) + number))
        tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def run_measured(out: Path, *arguments) -> tuple[int, int]:
    """`alp-megatron convert ARGUMENTS --out OUT` and its memory in bytes, (at start, at peak).

    The memory of all its processes; the start is when all modules are imported and the first file
    is about to be made.
    """
    command = [sys.executable, "-m", "alp_megatron", "convert", *map(str, arguments)]
    process = subprocess.Popen(
        [*command, "--out", str(out)], cwd=REPO, env=os.environ | {"PYTHONPATH": str(REPO)}
    )
    start = peak = 0
    partial = out.with_name(f".{out.name}.partial")
    while process.poll() is None:
        taken = _memory(process.pid)
        peak = max(peak, taken)
        if not partial.exists() and not out.exists():
            start = taken
        time.sleep(0.01)
    assert process.returncode == 0
    return start, peak


def _memory(pid: int) -> int:
    """All that the first process has, and what is each of the others' alone.

    They were forked from the first, so what they share is counted there; shares of pages (PSS)
    would be counted twice while a fork changes them.
    """
    try:
        root = psutil.Process(pid)
        children = root.children(recursive=True)
        return root.memory_info().rss + sum(c.memory_full_info().uss for c in children)
    except psutil.Error:  # one ended just now
        return 0
