"""The header of a safetensors file: where its tensors lie, held to what the format allows.

A header that is wrong would give a tensor its neighbour's bytes, without a word.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from alp_megatron.errors import UserError
from alp_megatron.hf.files import COPY_AGAIN

# safetensors' name of a type -> bytes of an element. A type that is not here, such as one of less
# than a byte, may have any size: nothing of it is read.
_ITEM_BYTES = (
    dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1)
    | dict.fromkeys(("U16", "I16", "F16", "BF16"), 2)
    | dict.fromkeys(("U32", "I32", "F32"), 4)
    | dict.fromkeys(("U64", "I64", "F64", "C64"), 8)
)


@dataclass(frozen=True)
class Entry:
    """Says where a tensor lies: `start` is the place in the file of its first byte."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_header(path: Path) -> dict[str, Entry]:
    """Returns the tensors of a file by name, in the order of its header.

    The file is 8 bytes of the header's length, the header in JSON, and the data: the tensors one
    after another, without gaps.

    Raises:
        UserError: the file cannot be read, is cut short or does not keep to the format; naming it,
            and the tensor.
    """
    header, data, size = _parse(path)
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, told, data) for name, told in header.items()}
    end = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != end:
            raise UserError(
                f"{path}: {name} starts at byte {entry.start - data} of the data, where the tensor "
                f"before it ends at {end - data}; {COPY_AGAIN}."
            )
        end += entry.nbytes
    if size != end:
        raise UserError(f"{path} has {size} bytes where its header says {end}; {COPY_AGAIN}.")
    return entries


def _parse(path: Path) -> tuple[dict, int, int]:
    """Returns the header, the place in the file where the data start, and the file's size."""
    try:
        with path.open("rb") as file:
            header_length = int.from_bytes(file.read(8), "little")
            size, data = path.stat().st_size, 8 + header_length
            text = file.read(header_length) if data <= size else b""
        header = json.loads(text) if text else None
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {COPY_AGAIN}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has no safetensors header; {COPY_AGAIN}.") from error
    if size < data:
        raise UserError(f"{path} is cut short at {size} bytes; {COPY_AGAIN}.")
    if not isinstance(header, dict) or not header.keys() - {"__metadata__"}:
        raise UserError(f"{path} has no safetensors header; {COPY_AGAIN}.")
    return header, data, size


def _entry(path: Path, name: str, told: object, data: int) -> Entry:
    """Returns a tensor's entry, of what the header tells of it and the place of the data."""
    match told:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, stop]}:
            numbers = [*shape, start, stop]
        case _:
            numbers = [-1]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise UserError(
            f"{path}: the header's entry of {name} is not a dtype, a shape and data_offsets as "
            f"safetensors writes them; {COPY_AGAIN}."
        )
    nbytes, item = stop - start, _ITEM_BYTES.get(dtype)
    if nbytes < 0 or (item and nbytes != prod(shape) * item):
        raise UserError(
            f"{path}: {name} has {nbytes} bytes, which are not those of shape {shape} in {dtype}; "
            f"{COPY_AGAIN}."
        )
    return Entry(path, dtype, tuple(shape), data + start, nbytes)
