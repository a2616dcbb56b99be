"""The policy network: Megatron's GPT model with a log-probability head."""

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from alp_megatron.fp8.scope import Fp8Pass
from alp_megatron.model.hf_config import PolicyConfig, padded_vocab_size
from alp_megatron.model.logprobs import vocab_parallel_logprobs
from alp_megatron.model.microbatch import MicroBatch
from alp_megatron.model.packed_params import PackedParams, packed_params
from alp_megatron.model.rotary import PackedRotaryEmbedding, inverse_frequencies
from alp_megatron.perturbation.logits import LogitsNoise


class PolicyModel(GPTModel):
    """One pipeline chunk of the policy.

    `forward(batch, temperature)` returns (log-probabilities [n], entropies [n]) of the
    micro-batch's predicted tokens on the last stage, hidden states elsewhere. Inside a
    `perturbation` scope every layer of it is perturbed.
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

    def forward(self, batch: MicroBatch, temperature: float = 1.0):
        params = packed_params(
            batch,
            temperature,
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
        """Megatron would make all logits here; only the predicted rows are scored, in chunks."""
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
            params.noise, settings.sigma0, params.sample_ids[rows], params.positions[rows]
        )
