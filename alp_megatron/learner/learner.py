"""Drives Megatron's forward-backward schedules over micro-batches of samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from alp_megatron.config.schema import Config
from alp_megatron.data.microbatch import MicroBatch, Sequence, pack, row_length
from alp_megatron.hf.files import read_hf_config
from alp_megatron.hf.tensors import HfTensors
from alp_megatron.learner.optimizer import build_optimizer, step_if_finite, wrap
from alp_megatron.model.policy import build_model
from alp_megatron.model.transformer_config import token_multiple
from alp_megatron.perturbation import NoiseKey
from alp_megatron.runtime.mesh import from_every_rank
from alp_megatron.weights.hf_model import load_hf

# (log-probabilities [n], entropies [n], micro-batch) -> (loss, what to keep of it)
LossFunction = Callable[[Tensor, Tensor, MicroBatch], tuple[Tensor, dict]]


@dataclass
class OptimizerStep:
    """Says what one update did. `kept` is what the loss function kept, on the last stage."""

    kept: list[dict]
    grad_norm: float
    skipped: bool


class Learner:
    """Owns this rank's part of the policy and, for training, its optimizer.

    Args:
        training: with gradient buffers and an optimizer; else for log-probabilities only.
        load: fills the chunks; from `model.path` if not given.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        *,
        training: bool = True,
        load: Callable[[list], None] | None = None,
    ):
        self.config = config
        self.device = device
        self.hf = read_hf_config(config.model.path)
        self.rollout_dtype = getattr(torch, config.rollout.dtype)
        self.chunks = build_model(config)
        for chunk in self.chunks:
            chunk.to(device)
        if load:
            load(self.chunks)
        else:
            load_hf(self.chunks, self.hf["model_type"], HfTensors(config.model.path))
        self.policy_config = self.chunks[0].config
        self.policy_config.finalize_model_grads_func = _sum_gradients
        self.model = self.chunks
        self.optimizer = None
        if training:
            self.model = wrap(self.chunks, config)
            self.optimizer, self.scheduler = build_optimizer(config, self.model)
        self._forward_backward = get_forward_backward_func()

    def pack(self, samples: list[Sequence], num_microbatches: int) -> list[MicroBatch]:
        """Deals samples over micro-batches so that each has about the same number of tokens.

        A micro-batch that gets no sample is a row of padding: every replica runs as many. Under
        sequence parallelism TP splits a row; pipeline stages exchange rows of one shape; FP8
        kernels take multiples of some number of tokens.
        """
        by_length = sorted(samples, key=lambda s: -len(s.token_ids))
        dealt = [by_length[i::num_microbatches] for i in range(num_microbatches)]
        packing, model = self.config.trainer.packing, self.config.model
        multiple = model.tensor_model_parallel_size if model.sequence_parallel else 1
        multiple *= token_multiple(model.fp8)
        totals = [max(1, -(-row_length(d, packing) // multiple)) * multiple for d in dealt]
        if model.pipeline_model_parallel_size > 1:
            totals = [max(totals)] * num_microbatches
        return [
            pack(d, packing=packing, total_length=total, device=self.device)
            for d, total in zip(dealt, totals, strict=True)
        ]

    def forward(
        self, batches: list, temperature: float, keep: Callable, key: NoiseKey | None = None
    ) -> list:
        """Runs micro-batches without gradients; `keep(logprobs, entropies, batch)` of each.

        Perturbed with the key's noise, if there is a key. Returns the kept values on the last
        pipeline stage, an empty list elsewhere.
        """

        def loss(output, batch):
            return output[0].sum(), torch.zeros((), dtype=torch.int), keep(*output, batch)

        # Transformer Engine keeps, of a pass in training mode, scales for a recomputation to come.
        for chunk in self.model:
            chunk.eval()
        with torch.no_grad():
            kept = self._run(batches, temperature, key, loss, forward_only=True)
        for chunk in self.model:
            chunk.train()
        return kept

    def update(
        self,
        batches: list,
        temperature: float,
        loss_function: LossFunction,
        key: NoiseKey | None = None,
    ) -> OptimizerStep:
        """Makes one optimizer update; the micro-batches' losses are summed over all ranks.

        Perturbed with the key's noise, if there is a key. A gradient that is not finite leaves
        parameters and optimizer state as they were.
        """
        for chunk in self.model:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

        def loss(output, batch):
            value, kept = loss_function(*output, batch)
            return value, torch.ones((), dtype=torch.int), kept

        kept = self._run(batches, temperature, key, loss, forward_only=False)
        grad_norm = step_if_finite(self.optimizer)
        skipped = not math.isfinite(grad_norm)
        if not skipped:
            self.scheduler.step(1)
        return OptimizerStep(kept, grad_norm, skipped)

    def _run(self, batches, temperature, key, loss, *, forward_only) -> list:
        def forward_step(iterator, model):
            batch = next(iterator)
            return model(batch, temperature, key), partial(loss, batch=batch)

        return self._forward_backward(
            forward_step_func=forward_step,
            data_iterator=[iter(batches) for _ in self.model],
            model=self.model,
            num_microbatches=len(batches),
            seq_length=len(batches[0].tokens),
            micro_batch_size=1,
            forward_only=forward_only,
        )


def _sum_gradients(model, num_tokens=None, **kwargs):
    """Only sums; Megatron would divide by the token count, but our losses are normalised."""
    finalize_model_grads(model, None, **kwargs)


def token_logprobs(
    learner: Learner,
    sequences: list[Sequence],
    temperature: float = 1.0,
    key: NoiseKey | None = None,
) -> dict[int, Tensor]:
    """Returns fp32 log-probabilities of each sequence's predicted tokens, by sample id.

    Collective, with the same result on every rank. Unperturbed, unless a key is given.
    """
    batches = replica_microbatches(learner, sequences)
    lengths = {s.sample_id: len(s.token_ids) - s.first_predicted for s in sequences}

    def keep(logprobs: Tensor, entropies: Tensor, batch: MicroBatch) -> tuple[list[int], Tensor]:
        return batch.sequence_sample_ids, logprobs

    kept = learner.forward(batches, temperature, keep, key)
    on_host = [(ids, logprobs.cpu()) for ids, logprobs in kept]  # once all are under way
    return {
        sample_id: part
        for ids, logprobs in gather_from_replicas(on_host)
        for sample_id, part in zip(ids, logprobs.split([lengths[i] for i in ids]), strict=True)
    }


def replica_microbatches(learner: Learner, sequences: list[Sequence]) -> list[MicroBatch]:
    """Returns this replica's micro-batches, as many on every replica, with about as many tokens."""
    rank = parallel_state.get_data_parallel_rank()
    size = parallel_state.get_data_parallel_world_size()
    by_length = sorted(sequences, key=lambda s: (-len(s.token_ids), s.sample_id))
    count = -(-len(sequences) // (size * learner.config.trainer.micro_batch_size))
    if learner.config.model.virtual_pipeline_model_parallel_size:
        stages = learner.config.model.pipeline_model_parallel_size
        count = -(-count // stages) * stages  # the interleaved schedule runs them in rounds
    return learner.pack(by_length[rank::size], count)


def gather_from_replicas(kept: list) -> list:
    """Returns what the last pipeline stages kept, once for each replica, on every rank."""
    speaks = parallel_state.get_tensor_model_parallel_rank() == 0
    return [item for part in from_every_rank(kept if speaks else []) for item in part]
