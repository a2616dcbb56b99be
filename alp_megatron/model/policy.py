"""Builds the policy network: Megatron's GPT model with a log-probability head."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from torch import Tensor

from alp_megatron.config.schema import Config
from alp_megatron.data.microbatch import MicroBatch
from alp_megatron.fp8.recipes import Fp8Pass
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.model.attention import AttentionLayout, PackedRotaryEmbedding, inverse_frequencies
from alp_megatron.model.logprobs import vocab_parallel_logprobs
from alp_megatron.model.specs import block_spec
from alp_megatron.model.transformer_config import PolicyConfig, padded_vocab_size, policy_config
from alp_megatron.perturbation import NoiseKey, NoiseRows
from alp_megatron.perturbation.add_noise import LogitsNoise
from alp_megatron.runtime.device import on_device


@dataclass
class PackedParams(PackedSeqParams):
    """Reaches every layer and, by closure, every recomputation.

    That is why the noise lives here and not on a module: 1F1B runs other micro-batches
    between a forward and its recomputation.
    """

    positions: Tensor | None = None
    sample_ids: Tensor | None = None
    attention_layout: AttentionLayout | None = None
    noise: NoiseRows | None = None
    fp8: Fp8Pass | None = None
    predict_rows: Tensor | None = None
    targets: Tensor | None = None
    temperature: float = 1.0


def packed_params(
    batch: MicroBatch,
    temperature: float,
    key: NoiseKey | None,
    *,
    tp_rank: int,
    tp_size: int,
    sequence_parallel: bool,
) -> PackedParams:
    """Prepares a micro-batch for the layers, with the key's noise unless it is None."""
    params = PackedParams(
        positions=batch.positions,
        sample_ids=batch.sample_ids,
        predict_rows=batch.predict_rows,
        targets=batch.targets,
        temperature=temperature,
    )
    if batch.tokens.is_cuda:  # Transformer Engine's packed attention and rope
        ends = [0, *accumulate(batch.segment_lengths)]
        cu_seqlens = on_device(ends, torch.int32, batch.tokens.device)
        params.qkv_format = "thd"
        params.cu_seqlens_q = params.cu_seqlens_kv = cu_seqlens
        params.max_seqlen_q = params.max_seqlen_kv = max(batch.segment_lengths)
        params.pad_between_seqs = False  # else Transformer Engine compares tensors to find out
    else:
        params.qkv_format = "sbhd"
        params.attention_layout = AttentionLayout.of(batch.segment_lengths)
    if key is not None:
        rows = slice(None)
        if sequence_parallel:
            share = len(batch.tokens) // tp_size
            rows = slice(tp_rank * share, (tp_rank + 1) * share)
        params.noise = NoiseRows(key, batch.sample_ids[rows], batch.positions[rows], batch.counts)
    return params


class PolicyModel(GPTModel):
    """Is one pipeline chunk of the policy.

    `forward(batch, temperature, key)` returns (log-probabilities [n], entropies [n]) of the
    micro-batch's predicted tokens on the last stage, hidden states elsewhere; without a key
    no layer is perturbed.
    """

    def __init__(self, config: PolicyConfig, spec, *, max_sequence_length: int, **stage):
        super().__init__(
            config=config,
            transformer_layer_spec=spec,
            vocab_size=padded_vocab_size(config.vocab_size, config.tensor_model_parallel_size),
            max_sequence_length=max_sequence_length,
            position_embedding_type="rope",
            share_embeddings_and_output_weights=config.tie_word_embeddings,
            **stage,
        )
        device = next(self.parameters()).device
        if device.type != "cuda":
            self.rotary_pos_emb = PackedRotaryEmbedding(config.kv_channels, rotary_percent=1.0)
        self.rotary_pos_emb.inv_freq = inverse_frequencies(config.rope, config.kv_channels, device)

    def forward(self, batch: MicroBatch, temperature: float = 1.0, key: NoiseKey | None = None):
        params = packed_params(
            batch,
            temperature,
            key,
            tp_rank=parallel_state.get_tensor_model_parallel_rank(),
            tp_size=self.config.tensor_model_parallel_size,
            sequence_parallel=self.config.sequence_parallel,
        )
        if self.config.emulated_fp8 is not None:
            params.fp8 = Fp8Pass(params.sample_ids[:, None] >= 0, records=torch.is_grad_enabled())
        return super().forward(
            input_ids=batch.tokens[None],
            position_ids=batch.positions[None],
            attention_mask=None,
            packed_seq_params=params,
        )

    def _postprocess(self, hidden_states: Tensor, *, packed_seq_params: PackedParams, **_):
        """Scores the predicted rows in chunks, where Megatron would make all logits."""
        if not self.post_process:
            return hidden_states
        group = parallel_state.get_tensor_model_parallel_group()
        # Both make the sum over TP of the partial gradients that the head returns.
        if self.config.sequence_parallel:
            hidden_states = tensor_parallel.gather_from_sequence_parallel_region(hidden_states)
        else:
            hidden_states = tensor_parallel.copy_to_tensor_model_parallel_region(hidden_states)
        weight = (
            self.shared_embedding_or_output_weight()
            if self.share_embeddings_and_output_weights
            else self.output_layer.weight
        )
        return vocab_parallel_logprobs(
            hidden_states[:, 0].index_select(0, packed_seq_params.predict_rows),
            weight,
            packed_seq_params.targets,
            temperature=packed_seq_params.temperature,
            vocab_size=self.config.vocab_size,
            chunk=self.config.logprob_chunk_tokens,
            group=group,
            noise=self._logits_noise(packed_seq_params),
        )

    def _logits_noise(self, params: PackedParams) -> LogitsNoise | None:
        settings = self.config.perturbation
        if params.noise is None or settings is None or settings.target != "logits":
            return None
        rows = params.predict_rows
        return LogitsNoise(
            params.noise.key_words,
            settings.sigma0,
            params.sample_ids[rows],
            params.positions[rows],
        )


def build_model(config: Config) -> list[PolicyModel]:
    """Returns this rank's model chunks: one, or one for each virtual pipeline stage.

    The weights are left uninitialised: `weights.load` fills them.
    """
    shape = read_model_shape(config.model.path)
    policy = policy_config(config, shape)
    chunks = config.model.virtual_pipeline_model_parallel_size
    stages = range(chunks) if chunks else [None]
    return [
        PolicyModel(
            policy,
            block_spec(policy, get_num_layers_to_build(policy, vp_stage=stage)),
            max_sequence_length=shape.max_position_embeddings,
            pre_process=parallel_state.is_pipeline_first_stage(
                ignore_virtual=False, vp_stage=stage
            ),
            post_process=parallel_state.is_pipeline_last_stage(
                ignore_virtual=False, vp_stage=stage
            ),
            vp_stage=stage,
        )
        for stage in stages
    ]
