"""Weights through a directory: whole, bounded, and every damaged file is refused by name."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alp_megatron.errors import RunError, UserError
from alp_megatron.weights.transport.buckets import Assembler, from_json
from alp_megatron.weights.transport.directory import Directory, read_bucket

CAPACITY = 1024


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(2.5),
        "codes": torch.randint(-127, 127, (9, 4), dtype=torch.int8),
        "transposed": torch.randn(16, 9).T,
        "large": torch.randn(33, 101),
    }


class Engine:
    """Receives as an engine does, after `spoil` has had its way with the file and what is said."""

    count = 1

    def __init__(self, spoil=None):
        self.spoil = spoil
        self.received: dict[str, torch.Tensor] = {}
        self.largest = 0
        self._assembler = Assembler()

    def connect(self, infos: list[dict]) -> None:
        assert infos == [{}]

    def receive(self, info: dict) -> None:
        path = Path(info["path"])
        assert len(list(path.parent.iterdir())) == 1
        self.largest = max(self.largest, path.stat().st_size)
        if self.spoil:
            self.spoil(path, info)
        bucket = from_json(info["pieces"])
        flat = read_bucket(path, info["version"], bucket, info["checksum"])
        self.received |= self._assembler.take(bucket, lambda piece: flat[piece.name])


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "version-1-000000.safetensors").write_text("left by a killed trainer")
    directory = Directory(tmp_path / "weights", CAPACITY)
    yield directory
    directory.close()
    assert list(tmp_path.iterdir()) == []


def test_what_arrives_is_what_was_sent(directory):
    sent, engine = tensors(), Engine()
    directory.connect(engine)
    directory.send(sent.items(), version=3, receivers=engine)
    assert list(engine.received) == list(sent)
    for name, tensor in sent.items():
        assert engine.received[name].dtype == tensor.dtype
        assert torch.equal(engine.received[name], tensor)
    assert engine.largest < CAPACITY + 1024  # the file's header


def torn(path, info):
    path.write_bytes(path.read_bytes()[:-10])


def without_its_end(path, info):
    """As after a crash of the file server: the length is right, the last bytes never came."""
    data = path.read_bytes()
    path.write_bytes(data[:-10] + bytes(10))


def of_another_version(path, info):
    save_file(load_file(path), path, metadata={"version": "2"})


def without_a_version(path, info):
    save_file(load_file(path), path)


def without_a_tensor(path, info):
    flat = load_file(path)
    del flat["b"]
    save_file(flat, path, metadata={"version": "3"})


def shorter(path, info):
    flat = load_file(path)
    save_file(flat | {"b": flat["b"][1:]}, path, metadata={"version": "3"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (torn, "is torn"),
        (without_its_end, "is torn"),
        (of_another_version, "holds version 2, not 3"),
        (without_a_version, "holds version None, not 3"),
        (without_a_tensor, "does not hold the announced b"),
        (shorter, "does not hold the announced b"),
        (lambda path, info: path.unlink(), "is missing here"),
        (lambda path, info: path.write_bytes(b""), "is torn"),
    ],
)
def test_a_damaged_file_is_refused_by_name(directory, spoil, message):
    engine = Engine(spoil)
    with pytest.raises(RunError, match=rf"version-3-000000\.safetensors {re.escape(message)}"):
        directory.send(tensors().items(), version=3, receivers=engine)
    assert engine.received == {}


def test_a_directory_that_cannot_be_written_to_is_one_sentence(directory, tmp_path):
    directory.close()  # somebody removed it
    with pytest.raises(UserError, match=f"cannot be written to {tmp_path}"):
        directory.send(tensors().items(), version=3, receivers=Engine())
