"""Log-probabilities of given tokens under the policy, over the whole run's ranks."""

import torch
from megatron.core import parallel_state
from torch import Tensor

from alp_megatron.model.microbatch import MicroBatch, Sequence
from alp_megatron.perturbation import NoiseKey, perturbation
from alp_megatron.runtime.process_groups import from_every_rank
from alp_megatron.trainer.learner import Learner


def token_logprobs(
    learner: Learner,
    sequences: list[Sequence],
    temperature: float = 1.0,
    key: NoiseKey | None = None,
) -> dict[int, Tensor]:
    """fp32 log-probabilities of each sequence's predicted tokens, by sample id, on every rank.

    A collective call. Unperturbed, unless a key is given.
    """
    batches = replica_microbatches(learner, sequences)

    def keep(logprobs: Tensor, entropies: Tensor, batch: MicroBatch) -> dict[int, Tensor]:
        lengths = torch.bincount(batch.sequence_index, minlength=len(batch.sequence_sample_ids))
        parts = logprobs.cpu().split(lengths.tolist())
        return dict(zip(batch.sequence_sample_ids, parts, strict=True))

    with perturbation(key):
        kept = learner.forward(batches, temperature, keep)
    return {i: part for of in gather_from_replicas(kept) for i, part in of.items()}


def replica_microbatches(learner: Learner, sequences: list[Sequence]) -> list[MicroBatch]:
    """This replica's micro-batches, as many on every replica, with about as many tokens."""
    rank = parallel_state.get_data_parallel_rank()
    size = parallel_state.get_data_parallel_world_size()
    by_length = sorted(sequences, key=lambda s: (-len(s.token_ids), s.sample_id))
    count = -(-len(sequences) // (size * learner.config.trainer.micro_batch_size))
    if learner.config.model.virtual_pipeline_model_parallel_size:
        stages = learner.config.model.pipeline_model_parallel_size
        count = -(-count // stages) * stages  # the interleaved schedule runs them in rounds
    return learner.pack(by_length[rank::size], count)


def gather_from_replicas(kept: list) -> list:
    """What the last pipeline stages kept, once for each replica, on every rank."""
    speaks = parallel_state.get_tensor_model_parallel_rank() == 0
    return [item for part in from_every_rank(kept if speaks else []) for item in part]
