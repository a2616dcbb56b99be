"""The hardware, and what a rollout engine does with its memory."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

from pydantic import Field

from alp_megatron.config.load import load_section
from alp_megatron.config.schema import Config, Section
from alp_megatron.errors import UserError
from alp_megatron.hf.shape import ModelShape
from alp_megatron.weights.quantize.scheme import UNQUANTIZED, scheme_of

GIB = 2**30


class Hardware(Section):
    name: str
    gpus_per_node: int = Field(ge=1)
    memory_gib: float = Field(gt=0, description="of one GPU")
    reserved_gib: float = Field(ge=0, description="what neither trainer nor engine can have")
    peak_tflops: float = Field(gt=0, description="bfloat16 without sparsity")
    hbm_gb_s: float = Field(gt=0, description="a GPU's own memory; 1e9 bytes a second")
    nvlink_gb_s: float = Field(gt=0, description="a GPU to others of its node, one direction")
    network_gb_s: float = Field(gt=0, description="a GPU to other nodes, one direction")
    train_mfu: float = Field(gt=0, le=1)
    decode_efficiency: float = Field(gt=0, le=1)
    link_efficiency: float = Field(gt=0, le=1)
    sync_gb_s: float = Field(gt=0, description="of a weight sync, gathering and loading together")

    @property
    def usable_bytes(self) -> float:
        return (self.memory_gib - self.reserved_gib) * GIB


def load_hardware(name: str) -> Hardware:
    """Reads `h100`, or a YAML file with the keys above. Raises UserError."""
    if name.endswith((".yaml", ".yml")):
        return load_section(Hardware, Path(name))
    known = {path.stem: path for path in Path(__file__).parent.glob("*.yaml")}
    if name not in known:
        example = known["h100"]
        raise UserError(f"--hardware {name} is not known: use h100, or a YAML file like {example}.")
    return load_section(Hardware, known[name])


ACTIVATIONS = 2 * GIB  # what vLLM's profiling run sets aside, an assumption; CUDA graphs included
_BYTES = {"int8": 1.0, "fp8": 1.0, "fp8_block": 1.0, "int4": 0.5}
_SCALE_BYTES = 2  # int4: of the bfloat16 scale of a group; other formats' scales are few


@dataclass(frozen=True)
class EngineMemory:
    """Holds the memory of one vLLM engine, which has one GPU.

    Attributes:
        share: bytes that it may have, by rollout.gpu_memory_utilization.
        weights: bytes of the (quantised) weights.
        kv_bytes_per_token, kv_tokens: of the cache that is left beside weights and activations.
        engines: how many there are; None where rollout.server_urls names them.
        beside_trainer: whether it shares its GPU with a training rank.
    """

    share: int
    weights: int
    kv_bytes_per_token: int
    kv_tokens: int
    engines: int | None
    beside_trainer: bool


def engine_memory(config: Config, shape: ModelShape, hardware: Hardware) -> EngineMemory:
    rollout = config.rollout
    share = int(rollout.gpu_memory_utilization * hardware.memory_gib * GIB)
    weights = engine_weights(config, shape)
    itemsize = 1 if rollout.kv_cache_dtype == "fp8" else _itemsize(config)
    a_token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * itemsize
    cache = share - weights - ACTIVATIONS
    own = rollout.engine == "vllm" or not rollout.server_urls
    return EngineMemory(
        share=share,
        weights=weights,
        kv_bytes_per_token=a_token,
        kv_tokens=max(0, cache // a_token),
        engines=(1 if rollout.engine == "vllm" else rollout.num_servers) if own else None,
        beside_trainer=own and rollout.transport != "nccl",
    )


def engine_weights(config: Config, shape: ModelShape) -> int:
    """Bytes of the weights in the engine: codes and scales of linear layers, the rest in dtype."""
    rollout = config.rollout
    codes, coded = _codes(shape, rollout.quantization, tuple(rollout.quantization_ignore))
    return codes + (parameter_count(shape) - coded) * _itemsize(config)


@lru_cache
def parameter_count(shape: ModelShape) -> int:
    return shape.num_parameters


@lru_cache
def _codes(shape: ModelShape, quantization: str, ignore: tuple[str, ...]) -> tuple[int, int]:
    """Returns (bytes of codes and scales, weights that they stand for)."""
    if quantization == UNQUANTIZED:
        return 0, 0
    shapes = shape.tensor_shapes()
    scheme = scheme_of(shapes, quantization, ignore)
    nbytes, coded = 0.0, 0
    for name, group in scheme.groups.items():
        count = prod(shapes[name])
        coded += count
        nbytes += count * (_BYTES[quantization] + (_SCALE_BYTES / group if group else 0))
    return int(nbytes), coded


def sampling_seconds(
    config: Config, shape: ModelShape, hardware: Hardware, engine: EngineMemory
) -> float | None:
    """Returns the seconds to sample a step's responses at full length; None if not one fits in the
    cache.

    Decoding reads all weights and the cache of the running samples for each token, so it is bound
    by the memory's bandwidth. Half of the length stands in the cache on average. Prefill is left
    out.
    """
    rollout = config.rollout
    fit = engine.kv_tokens // rollout.max_model_len
    if fit == 0:
        return None
    engines = engine.engines or len(rollout.server_urls)
    samples = rollout.prompts_per_step * rollout.samples_per_prompt
    at_once = min(-(-samples // engines), fit)
    waves = -(-samples // (engines * at_once))
    cached = at_once * rollout.max_model_len / 2 * engine.kv_bytes_per_token
    speed = hardware.hbm_gb_s * 1e9 * hardware.decode_efficiency
    return waves * rollout.max_new_tokens * (engine.weights + cached) / speed


def _itemsize(config: Config) -> int:
    return 2 if config.rollout.dtype == "bfloat16" else 4
