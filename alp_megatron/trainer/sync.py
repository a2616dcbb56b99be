"""Sends the trainer's weights to the running rollout engine."""

import torch
import torch.distributed as dist

from alp_megatron.model.microbatch import Sequence
from alp_megatron.rollout.engine import RolloutEngine, SamplingSpec
from alp_megatron.trainer.learner import Learner
from alp_megatron.trainer.logprobs import token_logprobs
from alp_megatron.weights.export import ExportPlan
from alp_megatron.weights.load import Checkpoint
from alp_megatron.weights.verify import (
    Digests,
    check_against_checkpoint,
    check_logprobs,
    check_same_tensors,
)


def sync(plan: ExportPlan, engine: RolloutEngine | None, dtype: torch.dtype, version: int) -> None:
    """Stream the weights into the engine, which lives on rank 0. Collective."""
    stream = plan.stream(dtype)
    if engine is not None:
        engine.update_weights(stream, version)
    else:
        for _ in stream:
            pass


def verified_sync(
    learner: Learner,
    plan: ExportPlan,
    engine: RolloutEngine | None,
    dtype: torch.dtype,
    version: int,
    base: Checkpoint | None,
    prompts: list[list[int]],
) -> dict[str, float]:
    """`sync`, and the proof that it worked: every tensor's fingerprint, then log-probabilities.

    Args:
        base: the model that the run started from, if nothing has been trained yet.
        prompts: rank 0's; the engine continues them and both sides score the result.

    Returns `max_abs_diff` and `k3` of the log-probabilities, on rank 0.
    """
    stream = plan.stream(dtype)
    sequences = [None]
    if engine is not None:
        sent = Digests()
        received = engine.update_weights(sent.record(stream), version, digests=True)
        check_same_tensors(sent.of, received)
        if base is not None:
            check_against_checkpoint(sent.of, base, dtype)
        sampling = SamplingSpec(1, 1.0, 16, (), seed=0)
        samples = engine.generate(prompts, sampling)
        sequences = [[p + s[0].response_ids for p, s in zip(prompts, samples, strict=True)]]
    else:
        for _ in stream:
            pass
    dist.broadcast_object_list(sequences, src=0)
    ours = _score(learner, sequences[0])
    if engine is None:
        return {}
    return check_logprobs(
        ours, engine.score(sequences[0]), learner.config.rollout.gate_max_abs_diff
    )


def _score(learner: Learner, sequences: list[list[int]]) -> list[list[float]]:
    """The trainer's log-probabilities of every token but each sequence's first."""
    numbered = [Sequence(i, tokens, first_predicted=1) for i, tokens in enumerate(sequences)]
    logprobs = token_logprobs(learner, numbered)
    return [logprobs[i].tolist() for i in range(len(sequences))]
