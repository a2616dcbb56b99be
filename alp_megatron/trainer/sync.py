"""Sends the trainer's weights to the running rollout engine."""

import torch

from alp_megatron.data.microbatch import Sequence
from alp_megatron.data.minibatch import as_sequence
from alp_megatron.hf.tensors import HfTensors
from alp_megatron.learner.learner import Learner, token_logprobs
from alp_megatron.rollout.engine import RolloutEngine
from alp_megatron.runtime.mesh import from_first_rank
from alp_megatron.trainer.driver import Driver
from alp_megatron.weights.export import ExportPlan
from alp_megatron.weights.quantize.scheme import Scheme, is_linear
from alp_megatron.weights.quantize.stream import WeightNoise, quantized
from alp_megatron.weights.verify import (
    Digests,
    check_against_checkpoint,
    check_codes_against_checkpoint,
    check_logprobs,
    check_rounded_against_checkpoint,
    check_same_tensors,
    check_version,
)

GATE_SAMPLES = 64  # responses whose log-probabilities both sides compute at the first sync

# Mean |log p| difference (nats) that a sound engine stays below: see docs/quantization.md.
GATE = {"none": 0.05, "int8": 0.1, "fp8": 0.1, "fp8_block": 0.1, "int4": 0.3}


def sync(
    plan: ExportPlan,
    engine: RolloutEngine | None,
    dtype: torch.dtype,
    scheme: Scheme | None,
    version: int,
    noise: WeightNoise | None = None,
) -> None:
    """Stream the weights into the engine, which lives on rank 0. Collective.

    Codes are made of the weights in `dtype`, as they are from the `hf/` of a checkpoint.
    """
    weights = plan.stream(dtype)
    if noise is not None:
        weights = noise.added(weights, version)
    stream = quantized(weights, scheme)
    if engine is not None:
        engine.update_weights(stream, version)
    else:
        for _ in stream:
            pass


def check_against_base(learner: Learner, plan: ExportPlan, base: HfTensors) -> None:
    """The untrained weights, exported in the trainer's own dtype, are the base model's. Collective.

    Before the cast to the engine's dtype, which would hide a change in the lowest bits. Weights
    that are held in FP8 are the base model's within its rounding.
    """
    dtype = learner.policy_config.params_dtype
    exported = Digests()
    for name, tensor in exported.record(plan.stream(dtype)):
        if learner.policy_config.fp8_param and is_linear(name):
            del exported.of[name]
            check_rounded_against_checkpoint(name, tensor, base)
    if exported.of:  # on rank 0
        check_against_checkpoint(exported.of, base, dtype)


def verified_sync(
    learner: Learner,
    plan: ExportPlan,
    driver: Driver | None,
    dtype: torch.dtype,
    scheme: Scheme | None,
    version: int,
    base: HfTensors | None,
) -> dict[str, float]:
    """`sync`, and the proof that it worked: every tensor's fingerprint, then log-probabilities.

    Args:
        base: the model that the run started from, if nothing has been trained yet.

    Returns what `check_logprobs` returns, on rank 0.
    """
    if base is not None:
        check_against_base(learner, plan, base)
    stream = quantized(plan.stream(dtype), scheme)
    responses: list[Sequence] = []
    if driver is not None:
        sent = Digests()
        received = driver.engine.update_weights(sent.record(stream), version, digests=True)
        check_same_tensors(sent.of, received)
        held_in_fp8 = learner.policy_config.fp8_param  # their codes are not those of the base
        if base is not None and scheme is not None and not held_in_fp8:
            trained = learner.policy_config.params_dtype
            check_codes_against_checkpoint(sent.of, base, trained, dtype, scheme)
        trajectories = driver.rollout(step=0)[:GATE_SAMPLES]
        check_version({t.policy_version for t in trajectories}, version)
        responses = [as_sequence(t) for t in trajectories]
    else:
        for _ in stream:
            pass
    responses = from_first_rank(responses)
    ours = token_logprobs(learner, responses)
    if driver is None:
        return {}
    rollout = learner.config.rollout
    theirs = driver.engine.score([s.token_ids for s in responses])
    return check_logprobs(
        [ours[s.sample_id].tolist() for s in responses],
        [row[s.first_predicted - 1 :] for s, row in zip(responses, theirs, strict=True)],
        rollout.gate_mean_abs_diff or GATE[rollout.quantization],
    )
