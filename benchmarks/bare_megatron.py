"""A training loop as Megatron-Core's users write it: the reference of the trainer's throughput.

GPTModel with its own vocabulary-parallel cross entropy over all tokens, DistributedDataParallel,
the distributed optimizer and `forward_backward_func`, on batches that were made beforehand, as a
data loader's workers would. No perturbation, log-probabilities, entropies, ratios or records.
"""

import torch
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer

from alp_megatron.config.schema import Config
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.learner.optimizer import build_optimizer, wrap
from alp_megatron.model.attention import AttentionLayout, PackedAttention
from alp_megatron.model.policy import PackedParams
from alp_megatron.model.specs import RMSNorm
from alp_megatron.model.transformer_config import padded_vocab_size, policy_config


class BareLoop:
    """One optimizer step at a time, always on the same samples and from random weights.

    Args:
        packed: rows of sequences back to back, with the attention of this project, because
            Megatron's own on a CPU takes no packed rows; otherwise everything is Megatron's
            own, on a rectangle of padded sequences.
    """

    def __init__(self, config: Config, trajectories: list[Trajectory], packed: bool):
        policy = policy_config(config, read_model_shape(config.model.path))
        torch.manual_seed(0)
        chunk = GPTModel(
            policy,
            _spec(policy, packed),
            vocab_size=padded_vocab_size(policy.vocab_size, policy.tensor_model_parallel_size),
            max_sequence_length=2048,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            position_embedding_type="rope",
            rotary_base=policy.rope.theta,
            share_embeddings_and_output_weights=policy.tie_word_embeddings,
        )
        policy.finalize_model_grads_func = finalize_model_grads
        self._model = wrap([chunk], config)
        self._optimizer, self._scheduler = build_optimizer(config, self._model)
        self._forward_backward = get_forward_backward_func()
        size = config.trainer.micro_batch_size
        multiple = policy.tensor_model_parallel_size if policy.sequence_parallel else 1
        by_length = sorted(trajectories, key=lambda t: -t.num_tokens)
        count = -(-len(trajectories) // size)
        make = _packed_batch if packed else _padded_batch
        self._batches = [make(by_length[i::count], multiple) for i in range(count)]

    def step(self) -> float:
        """The mean loss, so that a rank cannot run ahead of its own results."""
        for chunk in self._model:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        losses = self._forward_backward(
            forward_step_func=_forward_step,
            data_iterator=iter(self._batches),
            model=self._model,
            num_microbatches=len(self._batches),
            seq_length=self._batches[0]["input_ids"].shape[1],
            micro_batch_size=self._batches[0]["input_ids"].shape[0],
            forward_only=False,
        )
        self._optimizer.step()
        self._scheduler.step(1)
        total, tokens = torch.stack(losses).sum(0).tolist()
        return total / tokens


def _spec(policy, packed: bool) -> TransformerBlockSubmodules:
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    assert layer.module is TransformerLayer
    # Megatron's own RMSNorm without Transformer Engine refuses sequence parallelism.
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    if packed:
        layer.submodules.self_attention.submodules.core_attention = PackedAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * policy.num_layers, layer_norm=RMSNorm)


def _forward_step(iterator, model):
    batch = dict(next(iterator))
    mask = batch.pop("loss_mask")

    def loss(output):
        total, tokens = (output * mask).sum(), mask.sum()
        return total, tokens.int(), torch.stack([total.detach(), tokens])

    return model(**batch), loss


def _rows(trajectory: Trajectory) -> tuple[list[int], list[int], list[float]]:
    """Tokens, the tokens after them, and 1 where those are of the response."""
    tokens = trajectory.prompt_ids + trajectory.response_ids
    prompt, response = len(trajectory.prompt_ids), len(trajectory.response_ids)
    return tokens, tokens[1:] + [0], [0.0] * (prompt - 1) + [1.0] * response + [0.0]


def _packed_batch(trajectories: list[Trajectory], multiple: int) -> dict:
    tokens, labels, mask = ([x for row in rows for x in row] for rows in _columns(trajectories))
    lengths = [t.num_tokens for t in trajectories]
    tail = -len(tokens) % multiple
    lengths += [tail] * (tail > 0)
    positions = [p for length in lengths for p in range(length)]
    row = sum(lengths)  # rope is relative: Megatron's counts on over the whole row
    params = PackedParams(
        qkv_format="sbhd",
        max_seqlen_q=row,
        max_seqlen_kv=row,
        attention_layout=AttentionLayout.of(lengths),
    )
    return {
        "input_ids": torch.tensor([tokens + [0] * tail]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": None,
        "labels": torch.tensor([labels + [0] * tail]),
        "loss_mask": torch.tensor([mask + [0.0] * tail]),
        "packed_seq_params": params,
    }


def _padded_batch(trajectories: list[Trajectory], multiple: int) -> dict:
    length = -(-max(t.num_tokens for t in trajectories) // multiple) * multiple
    tokens, labels, mask = (
        torch.tensor([row + [0] * (length - len(row)) for row in rows])
        for rows in _columns(trajectories)
    )
    return {
        "input_ids": tokens,
        "position_ids": torch.arange(length).expand_as(tokens),
        "attention_mask": torch.ones(1, 1, length, length, dtype=torch.bool).triu(1),
        "labels": labels,
        "loss_mask": mask.float(),
    }


def _columns(trajectories: list[Trajectory]):
    return zip(*(_rows(t) for t in trajectories), strict=True)
