"""A checkpoint that is not what was written is found, and the file named."""

import json
import subprocess

import pytest

from alp_megatron.learner.checkpoints import damage, describe, write_manifest


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "__0_0.distcp").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "state" / ".metadata").write_bytes(b"where everything is")
    (tmp_path / "counters.json").write_text('{"step": 3}')
    write_manifest(tmp_path, {"counters.json": describe(tmp_path / "counters.json")})
    return tmp_path


def test_every_file_is_described_as_sha256sum_does(checkpoint):
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert sorted(files) == ["counters.json", "state/.metadata", "state/__0_0.distcp"]
    for name, entry in files.items():
        said = subprocess.run(["sha256sum", name], cwd=checkpoint, capture_output=True, text=True)
        assert entry["sha256"] == said.stdout.split()[0]
        assert entry["bytes"] == (checkpoint / name).stat().st_size
    assert damage(checkpoint) is None


@pytest.mark.parametrize("name", ["counters.json", "state/.metadata", "state/__0_0.distcp"])
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes where"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes where"),
        (lambda path: flip(path, bit=13), "checksum differs"),
        (lambda path: flip(path, bit=-1), "checksum differs"),
        (lambda path: path.unlink(), "cannot be read (No such file or directory)"),
    ],
    ids=["truncated", "longer", "a bit", "the last bit", "missing"],
)
def test_a_damaged_file_is_named(checkpoint, name, harm, said):
    harm(checkpoint / name)
    assert damage(checkpoint).startswith(name) and said in damage(checkpoint)
    found = [damage(checkpoint, share, 2) for share in range(2)]
    assert sorted(fault is None for fault in found) == [False, True]


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {"a": 3}}', '{"files": [1]}'])
def test_a_damaged_manifest(checkpoint, content):
    (checkpoint / "manifest.json").write_text(content)
    assert damage(checkpoint) == "manifest.json is damaged"


def test_every_bit_of_the_manifest_matters(checkpoint):
    """But for spaces and such: then it still describes the files that are there."""
    whole = (checkpoint / "manifest.json").read_bytes()
    entries = json.loads(whole)
    for bit in range(8 * len(whole)):
        flip(checkpoint / "manifest.json", bit)
        if damage(checkpoint) is None:
            assert json.loads((checkpoint / "manifest.json").read_bytes()) == entries
        flip(checkpoint / "manifest.json", bit)


def test_no_manifest(checkpoint):
    (checkpoint / "manifest.json").unlink()
    assert "manifest.json cannot be read" in damage(checkpoint)
