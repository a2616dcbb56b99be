"""A model directory's weights: found where the index says, and headers held to the format."""

import json

import pytest
import torch
from safetensors.torch import save_file

from alp_megatron.errors import UserError
from alp_megatron.hf.tensors import INDEX, SINGLE, HfTensors


def write_index(directory, weight_map):
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def write_header(directory, header, data=b""):
    """Writes a file whose header is given as it stands, or as what JSON makes of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (directory / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data)


def told(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def refusal(directory):
    with pytest.raises(UserError) as caught:
        HfTensors(directory)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 400 and sentence.startswith(str(directory))
    return sentence


def test_a_tensor_in_two_files_is_read_from_the_one_that_the_index_names(tmp_path):
    for value, name in enumerate(("one", "two")):
        tensors = {"a": torch.full((2,), value), "b": torch.full((3,), value)}
        save_file({k: t.float() for k, t in tensors.items()}, tmp_path / f"{name}.safetensors")
    for a, b in ((0, 1), (1, 0)):
        files = [tmp_path / f"{('one', 'two')[value]}.safetensors" for value in (a, b)]
        write_index(tmp_path, {"a": files[0].name, "b": files[1].name})
        tensors = HfTensors(tmp_path)
        assert tensors.tensor("a").tolist() == [a] * 2 and tensors.tensor("b").tolist() == [b] * 3
        assert [tensors.file(name) for name in "ab"] == files


def test_files_may_lie_in_folders_below(tmp_path):
    for value, folder in enumerate(("w", "w/deeper")):
        (tmp_path / folder).mkdir()
        save_file({f"t{value}": torch.tensor([float(value)])}, tmp_path / folder / SINGLE)
    write_index(tmp_path, {"t0": f"w/{SINGLE}", "t1": f"w/deeper/{SINGLE}"})
    tensors = HfTensors(tmp_path)
    assert {name: tensors.tensor(name).item() for name in tensors.names()} == {"t0": 0, "t1": 1}
    assert set(tensors.files) == {tmp_path / "w" / SINGLE, tmp_path / "w" / "deeper" / SINGLE}
    write_index(tmp_path, {"t1": f"w/{SINGLE}"})
    assert f"w/{SINGLE}: lacks t1" in refusal(tmp_path)


@pytest.mark.parametrize("place", ["../x", "w/../../x", "/x", "{}/x"])
def test_a_file_outside_the_directory_is_refused(tmp_path, place):
    save_file({"a": torch.zeros(1)}, tmp_path / "x")
    (tmp_path / "model").mkdir()
    write_index(tmp_path / "model", {"a": place.format(tmp_path)})
    assert f"{INDEX}: a is said to be in" in refusal(tmp_path / "model")


@pytest.mark.parametrize("place", [None, 3, 0.5, True, "", ["x"], {"x": "y"}])
def test_a_place_that_is_no_text_is_refused(tmp_path, place):
    save_file({"a": torch.zeros(1)}, tmp_path / "x")
    write_index(tmp_path, {"b": "x", "a": place})
    assert f"{INDEX}: the weight_map names no file for a" in refusal(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], ["x"], "x", 3])
def test_an_index_without_a_weight_map_is_refused(tmp_path, weight_map):
    write_index(tmp_path, weight_map)
    assert "has no weight_map" in refusal(tmp_path)


def test_headers_that_the_format_allows(tmp_path):
    """The order of the header is not that of the data; a tensor may be empty or one number."""
    save_file({"a": torch.zeros(2)}, tmp_path / SINGLE)
    assert HfTensors(tmp_path).shapes == {"a": (2,)}
    data = torch.arange(3.0).numpy().tobytes()
    header = {
        "__metadata__": {"format": "pt"},
        "b": told([1, 2], 4, 12),
        "a": told([], 0, 4),
        "none": told([2, 0], 4, 4),
        "of a type unknown here": told([4], 12, 14, "F4"),
    }
    write_header(tmp_path, header, data + b"\0\0")
    tensors = HfTensors(tmp_path)
    assert tensors.tensor("a").item() == 0 and tensors.tensor("b").tolist() == [[1, 2]]
    assert tensors.tensor("none").shape == (2, 0)
    with pytest.raises(UserError, match=f"{SINGLE}: of a type unknown here has the type F4"):
        tensors.tensor("of a type unknown here")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (told([2], 0, 8), told([2], 0, 8), "b starts at byte 0 of the data, where the tensor"),
        (told([2], 0, 8), told([2], 4, 12), "b starts at byte 4 of the data, where the tensor"),
        (told([2], 0, 8), told([1], 12, 16), "b starts at byte 12 of the data, where the tensor"),
        (told([2], 4, 12), told([1], 12, 16), "a starts at byte 4 of the data, where the tensor"),
        (told([2], 8, 16), told([1], 0, 4), "a starts at byte 8 of the data, where the tensor"),
        (told([4], 0, 4, "F4"), told([1], 8, 12), "b starts at byte 8 of the data"),
        (told([2], 0, 4), told([3], 4, 16), "a has 4 bytes, which are not those of shape [2]"),
        (told([2], 0, 8), told([4], 8, 16, "F32"), "b has 8 bytes, which are not those of shape"),
        (told([2], 0, 8), told([2], 8, 16, "BF16"), "of shape [2] in BF16"),
        (told([2], 8, 0), told([2], 8, 16), "a has -8 bytes"),
        (told([2], 0, 8), told([1], 8, 12), " bytes where its header says "),
        (told([2], 0, 8), told([3], 8, 20), " bytes where its header says "),
    ],
)
def test_ranges_that_overlap_leave_gaps_or_do_not_fit_the_shape(tmp_path, first, second, expected):
    write_header(tmp_path, {"a": first, "b": second}, bytes(16))
    sentence = refusal(tmp_path)
    assert sentence.startswith(f"{tmp_path / SINGLE}") and expected in sentence


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        "text",
        told(["2"], 0, 8),
        told([2.0], 0, 8),
        told([True, 2], 0, 8),
        told([-2], 0, 8),
        told([-1, -2], 0, 8),
        told([[2]], 0, 8),
        told(2, 0, 8),
        told("2", 0, 8),
        told(None, 0, 8),
        told([2], -8, 0),
        told([2], 0, "8"),
        told([2], 0.0, 8.0),
        told([2], False, 8),
        told([2], 0, 8, None),
        told([2], 0, 8, 32),
        {"shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": 8},
    ],
)
def test_entries_that_are_none(tmp_path, entry):
    write_header(tmp_path, {"a": entry}, bytes(8))
    assert f"{SINGLE}: the header's entry of a is not a dtype, a shape and" in refusal(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"\xff\xff",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000,
        [],
        "text",
        3,
        None,
        {},
        {"__metadata__": {"format": "pt"}},
    ],
    ids=lambda header: str(header)[:20],
)
def test_headers_that_are_none(tmp_path, header):
    write_header(tmp_path, header)
    assert f"{SINGLE} has no safetensors header" in refusal(tmp_path)
