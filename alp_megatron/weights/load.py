"""Fills this rank's model chunks from a Hugging Face directory, each rank reading its own part."""

from collections.abc import Iterator
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.fp8_utils import is_float8tensor
from safetensors import SafetensorError, safe_open

from alp_megatron.errors import UserError
from alp_megatron.weights.layouts import merge, shard
from alp_megatron.weights.mapping import rules_of_chunk


class Checkpoint:
    """The tensors of a directory's *.safetensors files by name, read when asked for."""

    def __init__(self, model_dir: str | Path):
        self.model_dir = Path(model_dir)
        files = sorted(self.model_dir.glob("*.safetensors"))
        if not files:
            raise UserError(
                f"{model_dir} has no *.safetensors file: give a Hugging Face model directory."
            )
        self._files = {}
        for path in files:
            try:
                opened = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise UserError(f"{path} cannot be read ({error}): copy the file again.") from None
            self._files.update({name: opened for name in opened.keys()})  # noqa: SIM118

    def names(self) -> list[str]:
        return sorted(self._files)

    def stream(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor in `dtype`) of the whole checkpoint, one tensor in memory at a time."""
        for name in self.names():
            yield name, self.tensor(name).to(dtype)

    def tensor(self, name: str) -> torch.Tensor:
        if name not in self._files:
            raise UserError(
                f"{self.model_dir} has no tensor {name}: its weights do not belong to its "
                "config.json; copy the model again."
            )
        return self._files[name].get_tensor(name)


def load_hf(chunks: list, model_type: str, checkpoint: Checkpoint) -> None:
    """Copy the checkpoint into the chunks' parameters. `s_l` is left at its initial 0.

    Raises UserError naming the tensor if one is missing or has another shape.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    for chunk in chunks:
        rules = rules_of_chunk(chunk, model_type)
        groups = chunk.config.num_query_groups
        for name, parameter in chunk.named_parameters():
            if name not in rules:
                continue
            layout, hf_names, expert = rules[name]
            try:
                parts = [checkpoint.tensor(n) for n in hf_names]
                part = merge(layout, parts, groups)
                if not expert:
                    part = shard(layout, part, rank, size)
            except RuntimeError:
                part = torch.empty(0)
            if part.shape != parameter.shape:
                raise UserError(
                    f"{checkpoint.model_dir}: {' + '.join(hf_names)} have shapes "
                    f"{[tuple(p.shape) for p in parts]}, which its config.json contradicts; "
                    "copy the model again."
                )
            with torch.no_grad():
                parameter.copy_(part)
                if is_float8tensor(parameter):  # the optimizer's fp32 copy is made of this one
                    parameter.get_high_precision_init_val().copy_(part)
