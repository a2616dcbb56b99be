"""Weights through files in a directory that trainer and engines see: works for any of them."""

import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alp_megatron.errors import RunError
from alp_megatron.files import disk_errors
from alp_megatron.weights.transport.buckets import (
    DEFAULT_CAPACITY,
    Bucket,
    Buffer,
    Memory,
    Receivers,
    pack,
    to_json,
)


class Directory:
    """A Transport. One safetensors file of at most `capacity` bytes lies there at a time.

    Args:
        directory: this trainer's alone, under the same path for the engines. It is made anew.
    """

    collective = False

    def __init__(self, directory: Path, capacity: int = DEFAULT_CAPACITY):
        self._buffer = Memory(torch.empty(capacity, dtype=torch.uint8))
        self._directory = directory.absolute()
        self.close()  # what a killed trainer left
        self._directory.mkdir(parents=True)

    def connect(self, receivers: Receivers) -> None:
        receivers.connect([{}] * receivers.count)

    def send(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, receivers: Receivers
    ) -> None:
        for number, bucket in enumerate(pack(tensors, self._buffer)):
            path = self._directory / f"version-{version}-{number:06d}.safetensors"
            try:
                checksum = write_bucket(path, version, bucket, self._buffer)
                receivers.receive(
                    {
                        "version": version,
                        "path": str(path),
                        "checksum": checksum,
                        "pieces": to_json(bucket),
                    }
                )
            finally:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


def write_bucket(path: Path, version: int, bucket: Bucket, buffer: Buffer) -> int:
    """Returns the checksum of the pieces. Raises UserError if the file cannot be written."""
    pieces = {piece.name: buffer.view(piece) for piece in bucket}
    with disk_errors(
        lambda error: (
            f"weights cannot be written to {path.parent} ({error}): free some space or "
            "choose another run_dir."
        )
    ):
        save_file(pieces, path, metadata={"version": str(version)})
    return _checksum(pieces[piece.name] for piece in bucket)


def read_bucket(path: Path, version: int, bucket: Bucket, checksum: int) -> dict[str, Tensor]:
    """Returns name -> the elements of each piece, `[count]`.

    Raises RunError naming the file if it is missing, torn or of another version, and the tensor
    if its piece is not the announced one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("version")
            pieces = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise RunError(
            f"weight update: {path} is missing here; the trainer's run_dir must be on a file "
            "system that the server sees under the same path"
        ) from None
    except (OSError, SafetensorError) as error:
        raise RunError(f"weight update: {path} is torn ({error})") from None
    if found != str(version):
        raise RunError(f"weight update: {path} holds version {found}, not {version}")
    for piece in bucket:
        flat = pieces.get(piece.name)
        if flat is None or flat.dtype != piece.dtype or flat.numel() != piece.count:
            raise RunError(f"weight update: {path} does not hold the announced {piece.name}")
    if _checksum(pieces[piece.name] for piece in bucket) != checksum:
        raise RunError(f"weight update: {path} is torn (its checksum is wrong)")
    return pieces


def _checksum(flats: Iterable[Tensor]) -> int:
    checksum = 0
    for flat in flats:
        checksum = zlib.crc32(flat.view(torch.uint8).numpy(), checksum)
    return checksum
