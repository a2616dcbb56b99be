"""How long a step takes, from stated figures of the hardware. An estimate, not a measurement."""

from dataclasses import dataclass

from alp_megatron.config.layout import data_parallel_size, num_microbatches, world_size
from alp_megatron.config.model_shape import ModelShape
from alp_megatron.config.schema import Config
from alp_megatron.plan.engine import (
    EngineMemory,
    engine_weights,
    parameter_count,
    sampling_seconds,
)
from alp_megatron.plan.hardware import Hardware
from alp_megatron.plan.traffic import Traffic, extra_passes


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
    """Of a step at full lengths.

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
