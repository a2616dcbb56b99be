"""The plan of a run as text."""

from dataclasses import fields

from alp_megatron.config.layout import data_parallel_size, num_microbatches, world_size
from alp_megatron.config.model_shape import ModelShape
from alp_megatron.config.schema import Config
from alp_megatron.plan.activations import longest_row
from alp_megatron.plan.engine import EngineMemory, engine_memory
from alp_megatron.plan.hardware import GIB, Hardware
from alp_megatron.plan.memory import TrainerMemory, trainer_memory
from alp_megatron.plan.seconds import Seconds, step_seconds
from alp_megatron.plan.traffic import Traffic, step_traffic, updates_per_step


def plan_text(config: Config, shape: ModelShape, hardware: Hardware) -> str:
    """Tables of memory, traffic and time of a layout that the model allows."""
    engine = engine_memory(config, shape, hardware)
    traffic = step_traffic(config, shape)
    seconds = step_seconds(config, shape, hardware, engine, traffic)
    parts = (
        _heading(config, shape, hardware),
        _memory(config, trainer_memory(config, shape), engine, hardware),
        _engine(config, engine, hardware),
        _traffic(traffic, seconds),
        _seconds(seconds, hardware),
    )
    return "\n\n".join(parts)


def _heading(config: Config, shape: ModelShape, hardware: Hardware) -> str:
    model, row = config.model, longest_row(config)
    layout = {
        "TP": model.tensor_model_parallel_size,
        "PP": model.pipeline_model_parallel_size,
        "VPP": model.virtual_pipeline_model_parallel_size or 1,
        "EP": model.expert_model_parallel_size,
        "DP": data_parallel_size(config),
    }
    shown = " ".join(f"{name}{size}" for name, size in layout.items() if size > 1 or name == "DP")
    return (
        f"{model.path}: {shape.num_parameters / 1e9:.2f} billion parameters, {model.params_dtype}\n"
        f"{world_size(config)} x {hardware.name}: {shown}"
        f"{', sequence parallel' if model.sequence_parallel else ''}, recompute "
        f"{model.recompute_granularity}\n"
        f"{updates_per_step(config)} updates a step, each of {num_microbatches(config)} "
        f"micro-batches of {row.tokens} tokens on every replica"
    )


def _memory(
    config: Config, stages: list[TrainerMemory], engine: EngineMemory, hardware: Hardware
) -> str:
    shown = sorted({0, len(stages) - 1})
    lines = ["Memory of a training rank (GiB)" + "".join(f"{f'stage {s}':>12}" for s in shown)]
    for part in fields(TrainerMemory):
        values = [getattr(stages[stage], part.name) for stage in shown]
        lines.append(f"  {part.name:<29}" + "".join(f"{value / GIB:>12.2f}" for value in values))
    lines.append(f"  {'total':<29}" + "".join(f"{stages[s].total / GIB:>12.2f}" for s in shown))
    if engine.beside_trainer:
        lines.append(f"  {'rollout engine beside it':<29}{engine.share / GIB:>12.2f}")
    usable = f"{hardware.usable_bytes / GIB:.2f} of {hardware.memory_gib} GiB"
    return "\n".join([*lines, f"  usable: {usable}"])


def _engine(config: Config, engine: EngineMemory, hardware: Hardware) -> str:
    rollout = config.rollout
    sequences = engine.kv_tokens // rollout.max_model_len
    count = engine.engines or len(rollout.server_urls)
    return (
        f"Rollout engines: {count}, each on one GPU with {engine.share / GIB:.1f} GiB\n"
        f"  {'weights (' + rollout.quantization + ')':<29}{engine.weights / GIB:>12.2f} GiB\n"
        f"  {'KV cache':<29}{engine.kv_tokens * engine.kv_bytes_per_token / GIB:>12.2f} GiB, "
        f"{engine.kv_tokens} tokens: {sequences} sequences of {rollout.max_model_len}"
    )


def _traffic(traffic: Traffic, seconds: Seconds) -> str:
    lines = ["Sent by a rank of stage 0 in a step    ranks         GiB     seconds"]
    for group, size in traffic.sizes.items():
        if traffic.sent(group):
            names = {"tp": "TP", "pp": "PP", "dp": "DP", "ep": "EP", "expert_dp": "DP of experts"}
            name = names.get(group, group)
            lines.append(
                f"  {name:<35}{size:>7}{traffic.sent(group) / GIB:>12.2f}"
                f"{seconds.communication[group]:>12.1f}"
            )
    return "\n".join(lines if len(lines) > 1 else ["No traffic between training ranks."])


def _seconds(seconds: Seconds, hardware: Hardware) -> str:
    rollout = "-" if seconds.rollout is None else f"{seconds.rollout:.1f}"
    total = (
        "-" if seconds.rollout is None else f"{seconds.rollout + seconds.train + seconds.sync:.1f}"
    )
    rows = {
        "rollout, responses of full length": rollout,
        f"training, at {hardware.train_mfu:.0%} of peak": f"{seconds.compute:.1f}",
        "  pipeline bubble": f"{seconds.bubble:.1f}",
        "  communication, none hidden": f"{sum(seconds.communication.values()):.1f}",
        "weight sync": f"{seconds.sync:.1f}",
        "a step": total,
    }
    lines = [f"  {name:<42}{value:>12}" for name, value in rows.items()]
    return "\n".join(["Seconds, an estimate from the hardware's stated figures", *lines])
