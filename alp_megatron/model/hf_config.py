"""A Hugging Face config.json as Megatron's configuration."""

from dataclasses import dataclass

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from alp_megatron.config.schema import Config, PerturbationConfig
from alp_megatron.model.hf_files import rope_theta


@dataclass
class PolicyConfig(TransformerConfig):
    """Megatron's configuration and what this project's layers and head need beside it."""

    perturbation: PerturbationConfig | None = None
    logprob_chunk_tokens: int = 1024
    vocab_size: int = 0
    rotary_base: float = 10000.0
    tie_word_embeddings: bool = False


def policy_config(config: Config, hf: dict) -> PolicyConfig:
    """The Megatron configuration of a Qwen2-family model in the layout that `config` asks for."""
    model = config.model
    dtype = getattr(torch, model.params_dtype)
    recompute = None if model.recompute_granularity == "none" else model.recompute_granularity
    whole = recompute == "full"
    heads = hf["num_attention_heads"]
    return PolicyConfig(
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        ffn_hidden_size=hf["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=hf.get("num_key_value_heads", heads),
        kv_channels=hf.get("head_dim") or hf["hidden_size"] // heads,
        layernorm_epsilon=hf["rms_norm_eps"],
        normalization="RMSNorm",
        activation_func=torch.nn.functional.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=hf["model_type"] == "qwen2",
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
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        perturbation=config.perturbation,
        logprob_chunk_tokens=model.logprob_chunk_tokens,
        vocab_size=hf["vocab_size"],
        rotary_base=rope_theta(hf),
        tie_word_embeddings=hf.get("tie_word_embeddings", False),
    )


def padded_vocab_size(vocab_size: int, tensor_model_parallel_size: int) -> int:
    return -(-vocab_size // tensor_model_parallel_size) * tensor_model_parallel_size
