"""The files of a Hugging Face model directory: whether they are whole, and copies of them."""

import json
import shutil
from pathlib import Path

from alp_megatron.errors import UserError
from alp_megatron.hf.shape import ModelShape, read_json_object

_COPY_AGAIN = "copy the model again"


Shapes = dict[str, tuple[int, ...]]


def check_weights(model_dir: Path) -> Shapes:
    """Every safetensors file is there, has its full length and holds what the index says.

    Returns:
        The shape of every tensor by name.

    Raises:
        UserError: naming the file.
    """
    index = model_dir / "model.safetensors.index.json"
    single = model_dir / "model.safetensors"
    if not index.exists():
        if not single.exists():
            raise UserError(f"{single} is missing: model.path needs weights in safetensors.")
        return _tensor_shapes(single)
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map; {_COPY_AGAIN}.")
    held = {shard: _tensor_shapes(model_dir / shard) for shard in sorted(set(weight_map.values()))}
    for name, shard in weight_map.items():
        if name not in held[shard]:
            raise UserError(f"{model_dir / shard}: lacks {name}, which {index.name} names there.")
    return {name: held[shard][name] for name, shard in weight_map.items()}


def check_tensors(model_dir: Path, found: Shapes, shape: ModelShape) -> None:
    """The weights are those of the model that config.json describes. Raises UserError."""
    wanted = shape.tensor_shapes()
    # A tied output layer may be written out a second time.
    for name in sorted(found.keys() - wanted.keys() - {"lm_head.weight"}):
        raise UserError(
            f"{model_dir} has a tensor {name}, for which its config.json has no place; "
            f"{_COPY_AGAIN}."
        )
    for name, expected in wanted.items():
        if name not in found:
            raise UserError(
                f"{model_dir} has no tensor {name}, which its config.json asks for; {_COPY_AGAIN}."
            )
        if found[name] != expected:
            raise UserError(
                f"{model_dir}: {name} has shape {list(found[name])} where config.json makes it "
                f"{list(expected)}; {_COPY_AGAIN}."
            )


def _tensor_shapes(path: Path) -> Shapes:
    """Of a safetensors file: 8 bytes of header length, a JSON header, the data."""
    try:
        with path.open("rb") as file:
            header_length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if size < 8 + header_length:
                raise UserError(f"{path} is cut short at {size} bytes; {_COPY_AGAIN}.")
            header = json.loads(file.read(header_length))
        header.pop("__metadata__", None)
        end = max(entry["data_offsets"][1] for entry in header.values())
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {_COPY_AGAIN}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UserError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} has no safetensors header; {_COPY_AGAIN}.") from error
    if size != 8 + header_length + end:
        raise UserError(
            f"{path} has {size} bytes where its header says {8 + header_length + end}; "
            f"{_COPY_AGAIN}."
        )
    return shapes


def check_tokenizer(model_dir: Path, shape: ModelShape) -> None:
    """tokenizer.json can be read, and no id of it lies outside the embedding table."""
    from tokenizers import Tokenizer

    path = model_dir / "tokenizer.json"
    read_json_object(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust reader raises bare Exception, whatever is wrong
        raise UserError(f"{path}: not a tokenizer: {error}; {_COPY_AGAIN}.") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest < 0:
        raise UserError(f"{path}: holds no tokens; {_COPY_AGAIN}.")
    if largest >= shape.vocab_size:
        raise UserError(
            f"{path}: has the token id {largest}, but config.json's vocab_size is "
            f"{shape.vocab_size}: the tokenizer belongs to another model."
        )


_KEPT = (".json", ".txt", ".model", ".jinja", ".tiktoken")


def read_hf_config(model_dir: str | Path) -> dict:
    """config.json as it stands."""
    return json.loads((Path(model_dir) / "config.json").read_text())


def stated_dtype(hf_config: dict) -> str | None:
    """'bfloat16' and the like: `dtype`, which older files call `torch_dtype`."""
    return hf_config.get("dtype") or hf_config.get("torch_dtype")


def copy_model_files(source: Path, target: Path) -> None:
    """Copy config, generation config and tokenizer: not the weights, not their index."""
    for path in sorted(source.iterdir()):
        if path.suffix in _KEPT and "index" not in path.name:
            shutil.copy(path, target / path.name)
