"""The tensors of a model directory: what its headers say there is, and plain reads of it.

A memory-mapped file would count in the process's memory, page by page, until the whole model did.
torch is imported only to read a tensor: what is refused before a run needs the headers alone.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from alp_megatron.errors import UserError
from alp_megatron.hf.files import COPY_AGAIN, read_json_object
from alp_megatron.hf.header import Entry, read_header
from alp_megatron.hf.shape import ModelShape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

# safetensors' name of a type -> torch's.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"  # in place of an index: all tensors in one file


class HfTensors:
    """Reads the tensors of a model directory by name: those of its index where it has one.

    Making it reads every header, once. Its methods read the files anew at each call.

    Raises:
        UserError: a file is missing, cut short or no safetensors file, or lacks what the index says
            it holds; naming the file.
    """

    def __init__(self, model_dir: str | Path):
        self.model_dir = Path(model_dir)
        index, single = self.model_dir / INDEX, self.model_dir / SINGLE
        if index.exists():
            self.files, self._entries = _read_indexed(index)
        elif single.exists():
            self.files, self._entries = [single], read_header(single)
        else:
            raise UserError(f"{single} is missing: model.path needs weights in safetensors.")

    @property
    def shapes(self) -> Shapes:
        """Every tensor's shape by name."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def names(self) -> list[str]:
        """Returns the tensors' names, file by file in the order of the headers."""
        return list(self._entries)

    def file(self, name: str) -> Path:
        """Returns the file that holds a tensor."""
        return self._entry(name).path

    def nbytes(self, name: str) -> int:
        """Returns a tensor's size in its file."""
        return self._entry(name).nbytes

    def dtype(self, name: str) -> "torch.dtype":
        """Returns a tensor's type. Raises UserError for what is not floating point of DTYPES."""
        import torch

        entry = self._entry(name)
        if entry.dtype not in DTYPES:
            raise UserError(
                f"{entry.path}: {name} has the type {entry.dtype}: convert a model whose weights "
                f"are {', '.join(DTYPES)}."
            )
        return getattr(torch, DTYPES[entry.dtype])

    def tensor(self, name: str) -> "Tensor":
        """Reads a whole tensor, into memory of its own."""
        return self._read(name, 0, self._entry(name).shape)

    def stream(self, dtype: "torch.dtype") -> Iterator[tuple[str, "Tensor"]]:
        """Yields (name, tensor in `dtype`) of the whole model, one tensor in memory at a time."""
        for name in self._entries:
            yield name, self.tensor(name).to(dtype)

    def rows(self, name: str, start: int, stop: int) -> "Tensor":
        """Reads rows `start` to `stop` of a tensor [n, ...], into memory of their own."""
        _, *rest = self._entry(name).shape
        return self._read(name, start * prod(rest), (stop - start, *rest))

    def check_finite(self, name: str, tensor: "Tensor") -> None:
        """Raises UserError naming the file if what was read of it holds NaN or infinity."""
        check_finite(tensor, f"{self.file(name)}: {name}")

    def _read(self, name: str, first: int, shape: tuple[int, ...]) -> "Tensor":
        """Returns elements from the `first` on, as a tensor of that shape."""
        import torch

        entry, dtype = self._entry(name), self.dtype(name)
        tensor = torch.empty(shape, dtype=dtype)
        buffer = memoryview(bytes_of(tensor))
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.start + first * dtype.itemsize)
            while len(buffer):
                count = file.readinto(buffer)
                if not count:
                    raise UserError(f"{entry.path} ended while it was read: {COPY_AGAIN}.")
                buffer = buffer[count:]
        return tensor

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise UserError(
                f"{self.model_dir} has no tensor {name}: its weights do not belong to its "
                f"config.json; {COPY_AGAIN}."
            )
        return self._entries[name]


def _read_indexed(index: Path) -> tuple[list[Path], dict[str, Entry]]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map; {COPY_AGAIN}.")
    for name, file in weight_map.items():
        _check_place(index, name, file)
    files = sorted(set(weight_map.values()))
    held = {file: read_header(index.parent / file) for file in files}
    for name, file in weight_map.items():
        if name not in held[file]:
            raise UserError(f"{index.parent / file}: lacks {name}, which {index.name} names there.")
    entries = {
        name: entry
        for file, tensors in held.items()
        for name, entry in tensors.items()
        if weight_map.get(name) == file
    }
    return [index.parent / file for file in files], entries


def _check_place(index: Path, name: str, file: object) -> None:
    """Checks that a file of the weight_map is one of the model directory, or of a folder in it."""
    if not isinstance(file, str) or not file:
        raise UserError(f"{index}: the weight_map names no file for {name}; {COPY_AGAIN}.")
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{index}: {name} is said to be in {file}, outside the model directory; {COPY_AGAIN}."
        )


def check_tensors(model_dir: Path, found: Shapes, shape: ModelShape) -> None:
    """Checks that the weights are those that config.json describes. Raises UserError."""
    wanted = shape.tensor_shapes()
    # A tied output layer may be written out a second time.
    for name in sorted(found.keys() - wanted.keys() - {"lm_head.weight"}):
        raise UserError(
            f"{model_dir} has a tensor {name}, for which its config.json has no place; "
            f"{COPY_AGAIN}."
        )
    for name, expected in wanted.items():
        if name not in found:
            raise UserError(
                f"{model_dir} has no tensor {name}, which its config.json asks for; {COPY_AGAIN}."
            )
        if found[name] != expected:
            raise UserError(
                f"{model_dir}: {name} has shape {list(found[name])} where config.json makes it "
                f"{list(expected)}; {COPY_AGAIN}."
            )


def check_finite(tensor: "Tensor", name: str) -> None:
    """Raises UserError naming the tensor if it holds NaN or infinity."""
    # One pass without temporaries: both are NaN where the tensor holds a NaN.
    low, high = tensor.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise UserError(f"{name} holds NaN or infinity: use weights that are finite.")


def bytes_of(tensor: "Tensor"):
    """Returns a contiguous tensor's memory as a numpy array of bytes."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy()
