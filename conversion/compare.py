"""Compares a checkpoint's tensors with a Hugging Face directory's, bit by bit."""

from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from conversion.hf_tensors import HfTensors, weight_files
from conversion.megatron_reader import MegatronTensors
from conversion.parameters import Parameter


def compare_tensors(
    parameters: list[Parameter],
    *,
    model_dir: Path,
    state_dir: Path,
    query_groups: int,
    head_dim: int,
    reports: Path,
) -> int:
    """Compare parameters; what differs is written to a file in `reports`. Returns the bytes.

    The safetensors files are read by the safetensors library, not by the code under test.
    """
    megatron, files = MegatronTensors(state_dir), _file_of_tensors(model_dir)
    tensors = HfTensors(model_dir)
    different: dict[str, int] = defaultdict(int)
    for parameter in parameters:
        for name, first, rows in megatron.hf_parts(parameter, query_groups, head_dim):
            # Opened anew: the pages of a mapped file count as the process's memory.
            with safe_open(files[name], framework="pt") as file:
                expected = file.get_slice(name)[first : first + len(rows)]
            different[name] += _differing(rows.to(tensors.dtype(name)), expected)
    lines = [f"{name}: {count} elements differ" for name, count in different.items() if count]
    if lines:
        (reports / f"{parameters[0].name}.txt").write_text("\n".join(lines))
    return sum(tensors.nbytes(name) for p in parameters for name in p.hf_names)


def _differing(one: Tensor, other: Tensor) -> int:
    """Elements whose bits differ."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return other.numel()
    a, b = (t.contiguous().view(-1).view(torch.uint8) for t in (one, other))
    if torch.equal(a, b):  # takes no memory
        return 0
    size = one.element_size()
    return int((a.view(-1, size) != b.view(-1, size)).any(1).sum())


def _file_of_tensors(model_dir: Path) -> dict[str, Path]:
    names = {}
    for path in weight_files(model_dir):
        with safe_open(path, framework="pt") as file:
            names |= dict.fromkeys(file.keys(), path)
    return names
