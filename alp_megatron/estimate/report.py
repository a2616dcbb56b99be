"""The seconds of a step, and the whole estimate as text."""

from dataclasses import dataclass, fields

from alp_megatron.config.layout import data_parallel_size, num_microbatches, world_size
from alp_megatron.config.schema import Config
from alp_megatron.estimate.engine import (
    GIB,
    EngineMemory,
    Hardware,
    engine_memory,
    engine_weights,
    parameter_count,
    sampling_seconds,
)
from alp_megatron.estimate.memory import TrainerMemory, longest_row, trainer_memory
from alp_megatron.estimate.traffic import Traffic, extra_passes, step_traffic, updates_per_step
from alp_megatron.hf.shape import ModelShape


@dataclass(frozen=True)
class Seconds:
    rollout: float | None  # None where not one sequence fits in the engine
    compute: float
    bubble: float
    communication: dict[str, float]  # by group, none of it hidden behind computation
    sync: float

    @property
    def train(self) -> float:
        return self.compute + self.bubble + sum(self.communication.values())


def step_seconds(
    config: Config, shape: ModelShape, hardware: Hardware, engine: EngineMemory, traffic: Traffic
) -> Seconds:
    compute = training_flops(config, shape) / (
        world_size(config) * hardware.peak_tflops * 1e12 * hardware.train_mfu
    )
    pp = config.model.pipeline_model_parallel_size
    chunks = config.model.virtual_pipeline_model_parallel_size or 1
    bubble = compute * (pp - 1) / (chunks * num_microbatches(config))
    return Seconds(
        rollout=sampling_seconds(config, shape, hardware, engine),
        compute=compute,
        bubble=bubble,
        communication={
            group: traffic.sent(group) / (_bandwidth(config, group, hardware))
            for group in traffic.sizes
            if traffic.sent(group)
        },
        sync=engine_weights(config, shape) / (hardware.sync_gb_s * 1e9),
    )


def training_flops(config: Config, shape: ModelShape) -> float:
    """Returns the floating-point operations of a step at full lengths.

    A forward pass takes 2 a parameter and token, the backward pass twice that. Causal attention
    adds 2 x 2 x heads x head_dim x (length / 2) a token and layer. The embedding table is looked
    up, not multiplied; of the experts only those count that a token visits.
    """
    rollout = config.rollout
    tokens = rollout.prompts_per_step * rollout.samples_per_prompt * rollout.max_model_len
    active = parameter_count(shape)
    if not shape.tie_word_embeddings:
        active -= shape.vocab_size * shape.hidden_size
    if shape.experts is not None:
        idle = shape.experts.num_experts - shape.experts.num_experts_per_tok
        expert = 3 * shape.hidden_size * shape.experts.moe_intermediate_size
        active -= shape.num_hidden_layers * idle * expert
    attention = 2 * shape.num_attention_heads * shape.head_dim * rollout.max_model_len
    forward = 2 * active + shape.num_hidden_layers * attention
    passes = 3 + (config.model.recompute_granularity == "full") + extra_passes(config)
    return forward * passes * tokens


def _bandwidth(config: Config, group: str, hardware: Hardware) -> float:
    """Bytes a second from one GPU to others of the group: the network's if it leaves the node."""
    model, dp = config.model, data_parallel_size(config)
    tp, ep = model.tensor_model_parallel_size, model.expert_model_parallel_size
    reach = {"tp": tp, "ep": ep, "dp": tp * dp, "expert_dp": tp * dp}
    inside = reach.get(group, world_size(config)) <= hardware.gpus_per_node
    speed = hardware.nvlink_gb_s if inside else hardware.network_gb_s
    return speed * 1e9 * hardware.link_efficiency


def plan_text(config: Config, shape: ModelShape, hardware: Hardware) -> str:
    """Returns tables of memory, traffic and time of a layout that the model allows."""
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
