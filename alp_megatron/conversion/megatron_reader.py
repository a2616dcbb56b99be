"""Reads a Megatron distributed checkpoint (torch_dist), one stored chunk at a time."""

import pickle
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from alp_megatron.conversion.parameters import BY_ROWS, Box, Parameter, hf_rows, overlap
from alp_megatron.errors import UserError
from alp_megatron.hf.tensors import check_finite
from alp_megatron.weights.mapping import PRIVATE_SUFFIX, split

_OF_MODEL = ("embedding.", "decoder.", "output_layer.")  # others are the optimizer's
_OF_LAYERS = "decoder.layers."
_OF_EXPERTS = ".experts.experts."


class MegatronTensors:
    """Reads parameters of a checkpoint in any layout: a stored tensor may be cut over TP, PP and
    EP.

    Args:
        state_dir: the directory with `.metadata` and the .distcp files.
    """

    def __init__(self, state_dir: Path):
        self.state_dir = state_dir
        try:
            metadata = FileSystemReader(state_dir).read_metadata()
        except FileNotFoundError:
            raise UserError(
                f"{state_dir} has no .metadata: give a Megatron checkpoint of format torch_dist."
            ) from None
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
            raise UserError(
                f"{state_dir}/.metadata cannot be read ({error}): copy the checkpoint again."
            ) from None
        self._stored = {
            key: stored
            for key, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }
        self._infos = {
            (index.fqn, tuple(index.offset)): info
            for index, info in metadata.storage_data.items()
            if index.offset is not None
        }
        self._by_place = self._boxes_by_place()

    def _boxes_by_place(self) -> dict[tuple, list[Box]]:
        """Returns {(key, layer, expert): boxes}: a parameter's boxes are found at once."""
        places = defaultdict(list)
        for key, stored in self._stored.items():
            axes = 2 if _OF_EXPERTS in key else 1 if key.startswith(_OF_LAYERS) else 0
            for chunk in stored.chunks:
                box = tuple(chunk.offsets), tuple(chunk.sizes)
                ranges = [range(o, o + n) for o, n in zip(*box, strict=True)][:axes]
                for index in product(*ranges):
                    places[key, *index].append(box)
        return places

    def check(self, parameters: list[Parameter]) -> None:
        """Checks that every parameter is there, in its shape, and every file has the bytes it
        should have.

        Raises UserError too where a weight would be lost.
        """
        self._check_nothing_is_lost(parameters)
        needed: dict[str, int] = {}
        for parameter in parameters:
            stored = tuple(self._stored[self._key(parameter)].size)
            expected = (*parameter.stack, *parameter.shape)
            padded = parameter.layout == "vocab" and stored[0] > expected[0]
            if stored != expected and not (padded and stored[1:] == expected[1:]):
                raise UserError(
                    f"{self.state_dir}: {parameter.keys[0]} has shape {list(stored)} where "
                    f"config.json makes it {list(expected)}: give the config.json of this model."
                )
            boxes = list(self._boxes(parameter))
            if sum(prod(shared[1]) for _, shared in boxes) != prod(parameter.shape):
                raise UserError(
                    f"{self.state_dir} lacks a part of {parameter.name}: copy the checkpoint again."
                )
            for box, _ in boxes:
                info = self._infos[self._key(parameter), box[0]]
                end = info.offset + info.length
                needed[info.relative_path] = max(needed.get(info.relative_path, 0), end)
        for name, size in needed.items():
            path = self.state_dir / name
            found = path.stat().st_size if path.is_file() else None
            if found is None:
                raise UserError(f"{path} is missing: copy the checkpoint again.")
            if found < size:
                raise UserError(
                    f"{path} is cut short at {found} of {size} bytes: copy the checkpoint again."
                )

    def _check_nothing_is_lost(self, parameters: list[Parameter]) -> None:
        known = {key for parameter in parameters for key in parameter.keys}
        for key in self._stored:
            if key.startswith(_OF_MODEL) and key not in known and not key.endswith(PRIVATE_SUFFIX):
                raise UserError(
                    f"{self.state_dir} has a tensor {key}, for which config.json has no place: "
                    "give the config.json of this model."
                )

    def dtype(self, parameter: Parameter) -> torch.dtype:
        return self._stored[self._key(parameter)].properties.dtype

    def hf_parts(
        self, parameter: Parameter, query_groups: int, head_dim: int
    ) -> Iterator[tuple[str, int, Tensor]]:
        """Yields the parameter's Hugging Face tensors in parts: (name, first row, rows), all rows
        once.

        Layouts that go by rows come a stored chunk at a time, others whole.
        """
        if parameter.layout in BY_ROWS and self._go_by_rows(parameter):
            for box, shared in self._boxes(parameter):
                chunk = self._load(parameter, box, shared)
                (first, *_), (count, *_) = shared
                for name, low, high in hf_rows(parameter, first, first + count):
                    yield name, low, chunk[: high - low]
                    chunk = chunk[high - low :]
            return
        tensors = split(parameter.layout, self.whole(parameter), query_groups, head_dim)
        for name, tensor in zip(parameter.hf_names, tensors, strict=True):
            yield name, 0, tensor

    def whole(self, parameter: Parameter) -> Tensor:
        boxes = list(self._boxes(parameter))
        if len(boxes) == 1:
            return self._load(parameter, *boxes[0])
        target = torch.empty(parameter.shape, dtype=self.dtype(parameter))
        for box, shared in boxes:
            slices = tuple(slice(o, o + n) for o, n in zip(*shared, strict=True))
            target[slices] = self._load(parameter, box, shared)
        return target

    def _go_by_rows(self, parameter: Parameter) -> bool:
        return all(shared[1][1:] == parameter.shape[1:] for _, shared in self._boxes(parameter))

    def _key(self, parameter: Parameter) -> str:
        for key in parameter.keys:
            if key in self._stored:
                return key
        raise UserError(
            f"{self.state_dir} has no tensor {parameter.keys[0]}, which config.json asks for: it "
            "is a checkpoint of another model, or was written without its weights."
        )

    def _boxes(self, parameter: Parameter) -> Iterator[tuple[Box, Box]]:
        """Yields (stored box, what it holds of the parameter, in the parameter's coordinates)."""
        key, axes = self._key(parameter), len(parameter.index)
        wanted = (
            (*parameter.index, *(0 for _ in parameter.shape)),
            (*(1 for _ in parameter.index), *parameter.shape),
        )
        for box in sorted(self._by_place[key, *parameter.index]):
            shared = overlap(box, wanted)
            if shared is not None:
                yield box, (shared[0][axes:], shared[1][axes:])

    def _load(self, parameter: Parameter, box: Box, shared: Box) -> Tensor:
        """Reads what a stored box holds of the parameter."""
        info = self._infos[self._key(parameter), box[0]]
        path = self.state_dir / info.relative_path
        try:
            with path.open("rb") as file:
                view = _create_file_view(file, info.offset, info.length)
                tensor = torch.load(view, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise UserError(
                f"{path}: {parameter.name} cannot be read ({str(error).splitlines()[0]}): copy "
                "the checkpoint again."
            ) from None
        if tuple(tensor.shape) != box[1]:
            raise UserError(f"{path}: {parameter.name} is not what .metadata says: copy it again.")
        axes = len(parameter.index)
        place = tuple(i - o for i, o in zip(parameter.index, box[0][:axes], strict=True))
        inside = tuple(
            slice(o - start, o - start + n)
            for o, n, start in zip(*shared, box[0][axes:], strict=True)
        )
        part = tensor[place + inside]
        check_finite(part, f"{path}: {parameter.name}")
        return part
