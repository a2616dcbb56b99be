"""Whether a run fits on its GPUs, why not, and the nearest layout that does."""

import json
from collections.abc import Iterator
from math import log2

from alp_megatron.check.validate import check_settings
from alp_megatron.config.layout import smallest_world_size, world_size
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.estimate.engine import ACTIVATIONS, GIB, Hardware, engine_memory
from alp_megatron.estimate.memory import trainer_memory
from alp_megatron.hf.shape import ModelShape

CACHED_SEQUENCES = 8  # of full length, which a smaller share of an engine must still hold

_SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "expert_model_parallel_size",
)


def problems(config: Config, shape: ModelShape, hardware: Hardware) -> list[str]:
    """Returns sentences for what does not fit; empty if all does."""
    try:
        check_settings(config, shape)
    except UserError as error:
        return [str(error)]
    found = _engine_problems(config, shape, hardware)
    engine = engine_memory(config, shape, hardware)
    beside = engine.share if engine.beside_trainer else 0
    stages = trainer_memory(config, shape)
    worst = max(range(len(stages)), key=lambda stage: stages[stage].total)
    # Rank 0 and its neighbours, whose GPUs the engines share, are of the first stage.
    first = stages[0].total + beside
    if first > hardware.usable_bytes and beside:
        found.append(
            f"a rank of the first stage needs {_gib(stages[0].total)} GiB and the rollout engine "
            f"beside it {_gib(beside)}, together {_gib(first)} of {_gib(hardware.usable_bytes)}"
        )
    elif stages[worst].total > hardware.usable_bytes:
        found.append(
            f"a rank of stage {worst} needs {_gib(stages[worst].total)} of "
            f"{_gib(hardware.usable_bytes)} GiB"
        )
    return found


def _engine_problems(config: Config, shape: ModelShape, hardware: Hardware) -> list[str]:
    engine = engine_memory(config, shape, hardware)
    length = config.rollout.max_model_len
    if engine.kv_tokens >= length:
        return []
    least = engine.weights + ACTIVATIONS + length * engine.kv_bytes_per_token
    if least > hardware.memory_gib * GIB:
        mend = "which is more than a GPU has, and an engine has one"
    else:
        mend = f"raise it to {least / GIB / hardware.memory_gib + 0.005:.2f}"
    return [
        f"an engine with rollout.quantization={config.rollout.quantization} needs {_gib(least)} "
        f"GiB for its weights and one sequence of {length} tokens, and "
        f"rollout.gpu_memory_utilization={config.rollout.gpu_memory_utilization} gives it "
        f"{_gib(engine.share)}: {mend}"
    ]


def nearest_fit(config: Config, shape: ModelShape, hardware: Hardware) -> list[str] | None:
    """Finds overrides with which it fits on as many GPUs, the nearest that do; None if none do."""
    formats = _formats(config, shape, hardware)
    candidates = _neighbours(config, shape, hardware, formats)
    for _, changed, overrides in sorted(candidates, key=lambda found: found[0]):
        if not problems(changed, shape, hardware):
            return overrides
    return None


def _neighbours(
    config: Config, shape: ModelShape, hardware: Hardware, formats: list[str]
) -> Iterator[tuple[float, Config, list[str]]]:
    """Yields (distance, configuration, overrides) of layouts that the model allows.

    The distance counts doublings of TP, PP and EP, and a step each for full recomputation,
    smaller micro-batches, a smaller share of the engine and a rougher quantisation.
    """
    layers, world = shape.num_hidden_layers, world_size(config)
    for tp in _powers(hardware.gpus_per_node):
        for pp in [n for n in range(1, layers + 1) if layers % n == 0 and n * tp <= world]:
            for ep in _powers(shape.experts.num_experts if shape.experts else 1):
                sizes = dict(zip(_SIZES, (tp, pp, ep), strict=True))
                for recompute in dict.fromkeys((config.model.recompute_granularity, "full")):
                    for quantization in formats:
                        yield from _candidate(
                            config, shape, hardware, sizes, recompute, quantization
                        )


def _formats(config: Config, shape: ModelShape, hardware: Hardware) -> list[str]:
    """Returns quantisations in which an engine could hold the model, if it had most of its GPU."""
    found = []
    for name in dict.fromkeys((config.rollout.quantization, "fp8", "int4")):
        rollout = {("rollout", "quantization"): name, ("rollout", "gpu_memory_utilization"): 0.9}
        try:
            if not _engine_problems(_with(config, rollout), shape, hardware):
                found.append(name)
        except UserError:  # a pattern of quantization_ignore that matches nothing
            continue
    return found


def _candidate(config, shape, hardware, sizes, recompute, quantization):
    """One layout: with the micro-batch and the engine's share as they are, and with less."""
    model = {**sizes, "sequence_parallel": sizes["tensor_model_parallel_size"] > 1}
    model["recompute_granularity"] = recompute
    changes = {("model", key): value for key, value in model.items()}
    if config.model.virtual_pipeline_model_parallel_size is not None:
        pp = sizes["pipeline_model_parallel_size"]
        if pp == 1 or shape.num_hidden_layers // pp % 2:
            changes["model", "virtual_pipeline_model_parallel_size"] = None
    changes["rollout", "quantization"] = quantization
    changes["trainer", "micro_batch_size"] = 1
    kept = {("trainer", "micro_batch_size"): config.trainer.micro_batch_size}
    for attempt in (changes | kept, changes):
        changed = _with(config, attempt)
        if world_size(changed) % smallest_world_size(changed):
            continue
        engine = engine_memory(changed, shape, hardware)
        cache = CACHED_SEQUENCES * config.rollout.max_model_len * engine.kv_bytes_per_token
        least = (engine.weights + ACTIVATIONS + cache) / GIB / hardware.memory_gib
        share = min(0.9, round(least + 0.005, 2))
        for utilization in dict.fromkeys((config.rollout.gpu_memory_utilization, share)):
            final = attempt | {("rollout", "gpu_memory_utilization"): utilization}
            changed = _with(config, final)
            overrides = _overrides(config, final)
            yield _distance(config, changed, overrides), changed, overrides


def _distance(config: Config, changed: Config, overrides: list[str]) -> float:
    doublings = sum(
        abs(log2(getattr(changed.model, key) / getattr(config.model, key))) for key in _SIZES
    )
    return doublings + 0.9 * len(overrides)


def _overrides(config: Config, changes: dict) -> list[str]:
    """Returns what of the changes is one, as on the command line."""
    return [
        f"{section}.{key}={value if isinstance(value, str) else json.dumps(value)}"
        for (section, key), value in changes.items()
        if getattr(getattr(config, section), key) != value
    ]


def _with(config: Config, changes: dict) -> Config:
    sections = {}
    for section in ("model", "rollout", "trainer"):
        update = {key: value for (of, key), value in changes.items() if of == section}
        sections[section] = getattr(config, section).model_copy(update=update)
    return config.model_copy(update=sections)


def _powers(limit: int) -> list[int]:
    return [2**n for n in range(limit.bit_length()) if 2**n <= limit]


def _gib(nbytes: float) -> str:
    return f"{nbytes / GIB:.1f}"
