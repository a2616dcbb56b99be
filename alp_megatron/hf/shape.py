"""A model's sizes and tensors from its Hugging Face config.json; imports nothing heavy."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from alp_megatron.errors import UserError
from alp_megatron.hf.files import COPY_AGAIN, read_hf_config

# The model families that can be trained, as data.
#
# A family with the parts of these is one more row here and one in `weights.mapping.FAMILIES`.


@dataclass(frozen=True)
class Family:
    """What a Hugging Face architecture has beside the decoder that all families share.

    Attributes:
        model_type, architecture: its names in config.json.
        qkv_bias: the query, key and value projections have biases, always.
        optional_biases: `attention_bias` and `mlp_bias` add biases to all linear layers.
        qk_norm: queries and keys pass an RMSNorm over each head.
        experts: a router and experts stand in place of the MLP.
        always_slides: `sliding_window` is obeyed without `use_sliding_window`.
    """

    model_type: str
    architecture: str
    qkv_bias: bool = False
    optional_biases: bool = False
    qk_norm: bool = False
    experts: bool = False
    always_slides: bool = False


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", optional_biases=True),
        Family("mistral", "MistralForCausalLM", always_slides=True),
        Family("qwen2", "Qwen2ForCausalLM", qkv_bias=True),
        Family("qwen3", "Qwen3ForCausalLM", qk_norm=True),
        Family("qwen3_moe", "Qwen3MoeForCausalLM", qk_norm=True, experts=True),
    )
}


_DEFAULT_THETA = 10000.0  # transformers' own, for every family here


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the low frequencies; the names are config.json's."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float


@dataclass(frozen=True)
class Rope:
    """The base of the frequencies, and how they are scaled, if at all."""

    theta: float = _DEFAULT_THETA
    scaling: Llama3Scaling | None = None


def read_rope(hf: dict[str, Any], path: Path) -> Rope:
    """Reads config.json's content. Raises UserError naming `path` for what is not supported.

    transformers 5 keeps everything in `rope_parameters`; transformers 4 had `rope_theta` beside
    `rope_scaling`, whose kind older files call `type`. Where a file has both, it is the latter
    that transformers obeys.
    """
    given = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise UserError(f"{path}: rope_parameters is {given!r}; it must be an object.")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(
            f"{path}: rotary embeddings of type {kind!r} are not supported; remove rope_scaling "
            "if max_position_embeddings is enough without it."
        )
    if given.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"{path}: partial rotary embeddings are not supported; use another model.")
    theta = _positive(given.get("rope_theta", hf.get("rope_theta", _DEFAULT_THETA)), path, "theta")
    if kind == "default":
        return Rope(theta)
    names = Llama3Scaling.__dataclass_fields__
    scaling = Llama3Scaling(*(_positive(given.get(name), path, f"llama3 {name}") for name in names))
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UserError(f"{path}: high_freq_factor must be more than low_freq_factor; correct it.")
    return Rope(theta, scaling)


def _positive(value: Any, path: Path, name: str) -> float:
    if type(value) not in (int, float) or not value > 0:
        raise UserError(f"{path}: rope's {name} is {value!r}; it must be a positive number.")
    return value


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)
_WINDOW = 4096  # what transformers takes for `sliding_window` where config.json has none


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in every layer; the names are config.json's."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool


@dataclass(frozen=True)
class ModelShape:
    """What the layers of a decoder are, under the names that config.json gives.

    `biases`: all linear layers have one (see Family.optional_biases).
    """

    family: Family
    hidden_size: int
    intermediate_size: int
    max_position_embeddings: int
    num_attention_heads: int
    num_hidden_layers: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int
    tie_word_embeddings: bool
    rms_norm_eps: float
    biases: bool
    rope: Rope
    experts: Experts | None

    @property
    def num_parameters(self) -> int:
        """The number of weights and biases; each layer's learnable sigma is not counted."""
        return sum(prod(shape) for shape in self.tensor_shapes().values())

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns every tensor's shape under its Hugging Face name."""
        h = self.hidden_size
        shapes = {"model.embed_tokens.weight": (self.vocab_size, h), "model.norm.weight": (h,)}
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, h)
        layer = self._attention_shapes() | self._mlp_shapes()
        for index in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
        return shapes

    def _attention_shapes(self) -> dict[str, tuple[int, ...]]:
        h, d = self.hidden_size, self.head_dim
        q, kv = (n * d for n in (self.num_attention_heads, self.num_key_value_heads))
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (h,),
            "post_attention_layernorm.weight": (h,),
        }
        qkv_bias = self.family.qkv_bias or self.biases
        shapes |= _linear("self_attn.q_proj", q, h, qkv_bias)
        shapes |= _linear("self_attn.k_proj", kv, h, qkv_bias)
        shapes |= _linear("self_attn.v_proj", kv, h, qkv_bias)
        shapes |= _linear("self_attn.o_proj", h, q, self.biases)
        if self.family.qk_norm:
            shapes |= {"self_attn.q_norm.weight": (d,), "self_attn.k_norm.weight": (d,)}
        return shapes

    def _mlp_shapes(self) -> dict[str, tuple[int, ...]]:
        h = self.hidden_size
        if self.experts is None:
            return _mlp("mlp", self.intermediate_size, h, self.biases)
        shapes: dict[str, tuple[int, ...]] = {"mlp.gate.weight": (self.experts.num_experts, h)}
        for index in range(self.experts.num_experts):
            size = self.experts.moe_intermediate_size
            shapes |= _mlp(f"mlp.experts.{index}", size, h, self.biases)
        return shapes


def _linear(name: str, out: int, into: int, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (out, into)}
    return shapes | {f"{name}.bias": (out,)} if bias else shapes


def _mlp(name: str, size: int, h: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return (
        _linear(f"{name}.gate_proj", size, h, bias)
        | _linear(f"{name}.up_proj", size, h, bias)
        | _linear(f"{name}.down_proj", h, size, bias)
    )


def read_model_shape(model_dir: str | Path) -> ModelShape:
    """Reads and checks `config.json`. Raises UserError naming the file and what is wrong."""
    path = Path(model_dir) / "config.json"
    hf = read_hf_config(model_dir)
    family = _family(hf, path)
    hf.setdefault("num_key_value_heads", hf.get("num_attention_heads"))
    sizes = {name: _size(hf, name, path) for name in _SIZES}
    heads, groups = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if hf["hidden_size"] % heads and not hf.get("head_dim"):
        raise UserError(f"{path}: hidden_size is not a multiple of the {heads} attention heads.")
    if heads % groups:
        raise UserError(f"{path}: num_key_value_heads={groups} does not divide {heads} heads.")
    _check_computes_the_same(hf, family, path)
    epsilon = hf.get("rms_norm_eps", 1e-6)
    if type(epsilon) not in (int, float) or not epsilon > 0:
        raise UserError(f"{path}: rms_norm_eps is {epsilon!r}; it must be a positive number.")
    head_dim = _size(hf, "head_dim", path) if hf.get("head_dim") else hf["hidden_size"] // heads
    if head_dim % 2:
        raise UserError(f"{path}: head_dim={head_dim} is odd; rotary embeddings need pairs.")
    return ModelShape(
        **sizes,
        family=family,
        head_dim=head_dim,
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
        rms_norm_eps=epsilon,
        biases=family.optional_biases and bool(hf.get("attention_bias")),
        rope=read_rope(hf, path),
        experts=_experts(hf, path) if family.experts else None,
    )


def _family(hf: dict[str, Any], path: Path) -> Family:
    known = {family.architecture: family for family in FAMILIES.values()}
    architectures = hf.get("architectures") or ["none"]
    if not isinstance(architectures, list) or architectures[0] not in known:
        raise UserError(
            f"{path}: the architecture {architectures} is not supported; "
            f"use a model of {', '.join(known)}."
        )
    family = known[architectures[0]]
    if hf.get("model_type") != family.model_type:
        raise UserError(
            f"{path}: model_type is {hf.get('model_type')!r} where {family.architecture} has "
            f"{family.model_type!r}; {COPY_AGAIN}."
        )
    return family


def _size(hf: dict[str, Any], name: str, path: Path) -> int:
    value = hf.get(name)
    if type(value) is not int or value < 1:
        raise UserError(f"{path}: {name} is {value!r}; it must be a positive integer.")
    return value


def _check_computes_the_same(hf: dict[str, Any], family: Family, path: Path) -> None:
    """Refuses what would load but compute something else than the model's authors meant."""
    if hf.get("quantization_config"):
        raise UserError(f"{path}: quantised weights cannot be trained; use the unquantised model.")
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(
            f"{path}: hidden_act={hf['hidden_act']!r} is not supported; use a model with 'silu'."
        )
    slides = family.always_slides or hf.get("use_sliding_window")
    window = hf.get("sliding_window", _WINDOW) if slides else None
    if window is not None and window < hf["max_position_embeddings"]:
        raise UserError(
            f"{path}: sliding-window attention is not supported, and sliding_window={window} is "
            f"less than max_position_embeddings={hf['max_position_embeddings']}; use another "
            "model, or lower max_position_embeddings to the window."
        )
    biases = [bool(hf.get(name)) for name in ("attention_bias", "mlp_bias")]
    if any(biases) and not (all(biases) and family.optional_biases):
        raise UserError(
            f"{path}: attention_bias={biases[0]} with mlp_bias={biases[1]} is not supported for "
            f"{family.architecture}: Megatron gives a bias to all linear layers or to none; use "
            "another model."
        )


def _experts(hf: dict[str, Any], path: Path) -> Experts:
    if hf.get("mlp_only_layers") or hf.get("decoder_sparse_step", 1) != 1:
        raise UserError(
            f"{path}: a model with experts in only some layers (mlp_only_layers, "
            "decoder_sparse_step) is not supported; use another model."
        )
    hf.setdefault("num_experts", hf.get("num_local_experts"))
    experts = Experts(
        num_experts=_size(hf, "num_experts", path),
        num_experts_per_tok=_size(hf, "num_experts_per_tok", path),
        moe_intermediate_size=_size(hf, "moe_intermediate_size", path),
        norm_topk_prob=bool(hf.get("norm_topk_prob", False)),
    )
    if experts.num_experts_per_tok > experts.num_experts:
        raise UserError(
            f"{path}: num_experts_per_tok={experts.num_experts_per_tok} is more than the model's "
            f"{experts.num_experts} experts."
        )
    if experts.num_experts_per_tok == 1 and experts.norm_topk_prob:
        raise UserError(
            f"{path}: norm_topk_prob with num_experts_per_tok=1 is not supported, because it "
            "makes every routing weight 1 and the router untrainable; set norm_topk_prob to false."
        )
    return experts
