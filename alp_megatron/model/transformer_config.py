"""Translates a Hugging Face config.json into Megatron's configuration."""

from dataclasses import dataclass, field

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from alp_megatron.config.schema import ALIGNMENT, Config, Fp8Config, PerturbationConfig
from alp_megatron.hf.shape import Experts, ModelShape, Rope


@dataclass
class PolicyConfig(TransformerConfig):
    """Adds to Megatron's configuration what this project's layers and head need."""

    perturbation: PerturbationConfig | None = None
    emulated_fp8: Fp8Config | None = None
    logprob_chunk_tokens: int = 1024
    vocab_size: int = 0
    rope: Rope = field(default_factory=Rope)
    tie_word_embeddings: bool = False


def policy_config(config: Config, shape: ModelShape) -> PolicyConfig:
    """Returns the Megatron configuration of a model in the layout that `config` asks for."""
    model = config.model
    dtype = getattr(torch, model.params_dtype)
    recompute = None if model.recompute_granularity == "none" else model.recompute_granularity
    whole = recompute == "full"
    return PolicyConfig(
        num_layers=shape.num_hidden_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.intermediate_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_key_value_heads,
        kv_channels=shape.head_dim,
        layernorm_epsilon=shape.rms_norm_eps,
        normalization="RMSNorm",
        activation_func=torch.nn.functional.silu,
        gated_linear_unit=True,
        add_bias_linear=shape.biases,
        add_qkv_bias=shape.family.qkv_bias,
        qk_layernorm=shape.family.qk_norm,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        fp32_residual_connection=model.fp32_residual_connection,
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=model.virtual_pipeline_model_parallel_size,
        sequence_parallel=model.sequence_parallel,
        batch_p2p_comm=False,
        # Of two stages each is the other's neighbour on both sides: batched sends would cross.
        overlap_p2p_comm=model.virtual_pipeline_model_parallel_size is not None,
        recompute_granularity=recompute,
        recompute_method="uniform" if whole else None,
        recompute_num_layers=1 if whole else None,
        # The loss is already divided by the global batch's count; Megatron only sums.
        calculate_per_token_loss=True,
        apply_rope_fusion=torch.cuda.is_available(),
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        perturbation=config.perturbation,
        **fp8_settings(model.fp8),
        logprob_chunk_tokens=model.logprob_chunk_tokens,
        vocab_size=shape.vocab_size,
        rope=shape.rope,
        tie_word_embeddings=shape.tie_word_embeddings,
        **(_moe_settings(shape.experts) if shape.experts else {}),
        expert_model_parallel_size=model.expert_model_parallel_size,
        expert_tensor_parallel_size=1,
    )


def _moe_settings(experts: Experts) -> dict:
    """Lets every token reach its experts; nothing is added to the loss.

    `norm_topk_prob` makes the weights of the chosen experts sum to 1, which is a softmax over
    the chosen alone; without it the softmax is over all experts.
    """
    return dict(
        num_moe_experts=experts.num_experts,
        moe_ffn_hidden_size=experts.moe_intermediate_size,
        moe_router_topk=experts.num_experts_per_tok,
        moe_router_pre_softmax=not experts.norm_topk_prob,
        moe_router_load_balancing_type="none",
        moe_aux_loss_coeff=0.0,
        moe_router_dtype="fp32",
        moe_token_dispatcher_type="alltoall",
    )


def padded_vocab_size(vocab_size: int, tensor_model_parallel_size: int) -> int:
    return -(-vocab_size // tensor_model_parallel_size) * tensor_model_parallel_size


def fp8_settings(fp8: Fp8Config | None) -> dict:
    """Returns fields of PolicyConfig: Megatron's on CUDA, which its Transformer Engine layers obey,
    elsewhere the emulation's."""
    if fp8 is None:
        return {}
    start, end = fp8.num_layers_at_start_in_bf16, fp8.num_layers_at_end_in_bf16
    layers = dict(
        first_last_layers_bf16=start + end > 0,
        num_layers_at_start_in_bf16=start,
        num_layers_at_end_in_bf16=end,
    )
    if not torch.cuda.is_available():
        return layers | {"emulated_fp8": fp8}
    return layers | dict(
        fp8=fp8.format,
        fp8_recipe=fp8.recipe,
        fp8_param=fp8.param_gather,
        fp8_margin=fp8.margin,
        fp8_amax_history_len=fp8.amax_history_len,
        fp8_amax_compute_algo=fp8.amax_compute_algo,
    )


def token_multiple(fp8: Fp8Config | None) -> int:
    """Returns what a rank's number of rows must be a multiple of; the emulation takes any."""
    return ALIGNMENT[fp8.recipe] if fp8 is not None and torch.cuda.is_available() else 1
