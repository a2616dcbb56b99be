"""The sizes in a Hugging Face config.json that the checks need; imports nothing heavy."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alp_megatron.errors import UserError

SUPPORTED_ARCHITECTURES = ("Qwen2ForCausalLM",)

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder, under the names that config.json gives them."""

    hidden_size: int
    intermediate_size: int
    max_position_embeddings: int
    num_attention_heads: int
    num_hidden_layers: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int
    tie_word_embeddings: bool

    @property
    def num_parameters(self) -> int:
        """Weights and biases of a Qwen2 model; each layer's learnable sigma is not counted."""
        h = self.hidden_size
        q, kv = (n * self.head_dim for n in (self.num_attention_heads, self.num_key_value_heads))
        attention = h * (q + 2 * kv) + (q + 2 * kv) + q * h
        layer = attention + 3 * h * self.intermediate_size + 2 * h
        embeddings = self.vocab_size * h * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + h


def read_model_shape(model_dir: str | Path) -> ModelShape:
    """Reads and checks `config.json`. Raises UserError naming the file and what is wrong."""
    path = Path(model_dir) / "config.json"
    hf = read_json_object(path)
    _check_supported(hf, path)
    for name in _SIZES:
        value = hf.get(name)
        if type(value) is not int or value < 1:
            raise UserError(f"{path}: {name} is {value!r}; it must be a positive integer.")
    heads = hf["num_attention_heads"]
    if hf["hidden_size"] % heads and not hf.get("head_dim"):
        raise UserError(f"{path}: hidden_size is not a multiple of the {heads} attention heads.")
    return ModelShape(
        **{name: hf[name] for name in _SIZES},
        head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object. Raises UserError naming the file and the line."""
    if not path.parent.is_dir():
        raise UserError(f"model.path={path.parent} is not a directory: check the path.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: model.path must be a Hugging Face model.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}.") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON; copy the model again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object; copy the model again.")
    return value


def _check_supported(hf: dict[str, Any], path: Path) -> None:
    """Refuses what would load but compute something else than the model's authors meant."""
    architectures = hf.get("architectures") or ["none"]
    if not isinstance(architectures, list) or architectures[0] not in SUPPORTED_ARCHITECTURES:
        raise UserError(
            f"{path}: the architecture {architectures} is not supported; "
            f"use a model of {', '.join(SUPPORTED_ARCHITECTURES)}."
        )
    if hf.get("quantization_config"):
        raise UserError(f"{path}: quantised weights cannot be trained; use the unquantised model.")
    if hf.get("use_sliding_window"):
        raise UserError(f"{path}: sliding-window attention is not supported; use another model.")
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default":
        raise UserError(
            f"{path}: rotary embeddings of type {kind!r} are not supported; remove rope_scaling "
            "if max_position_embeddings is enough without it."
        )
