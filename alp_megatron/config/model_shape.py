"""The sizes in a Hugging Face config.json that the checks need; imports nothing heavy."""

import json
from dataclasses import dataclass
from math import prod
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
        """Weights and biases; each layer's learnable sigma is not counted."""
        return sum(prod(shape) for shape in self.tensor_shapes().values())

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of a Qwen2 model under their Hugging Face names."""
        h, mlp = self.hidden_size, self.intermediate_size
        q, kv = (n * self.head_dim for n in (self.num_attention_heads, self.num_key_value_heads))
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (h,),
            "post_attention_layernorm.weight": (h,),
            "self_attn.o_proj.weight": (h, q),
            "mlp.gate_proj.weight": (mlp, h),
            "mlp.up_proj.weight": (mlp, h),
            "mlp.down_proj.weight": (h, mlp),
        }
        for name, size in (("q", q), ("k", kv), ("v", kv)):
            layer |= {f"self_attn.{name}_proj.weight": (size, h)}
            layer |= {f"self_attn.{name}_proj.bias": (size,)}
        shapes = {"model.embed_tokens.weight": (self.vocab_size, h), "model.norm.weight": (h,)}
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, h)
        for index in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
        return shapes


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
