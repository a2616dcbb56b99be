"""Measures what FP8 does to a step: against high precision, to the noise, in the operands."""

from collections import Counter

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from alp_megatron.data.minibatch import as_sequence
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.fp8.linear import EmulatedFp8
from alp_megatron.fp8.recipes import OPERANDS, without_fp8
from alp_megatron.learner.learner import Learner, token_logprobs
from alp_megatron.metrics.tokens import mismatch_metrics

COMPARED_SAMPLES = 64  # whose log-probabilities are computed in high precision as well


def fp8_mismatch(
    learner: Learner, trajectories: list[Trajectory], logprobs: dict[int, Tensor] | None
) -> dict[str, float]:
    """Returns `fp8/k3` and `fp8/abs_diff_mean` of the FP8 policy against the same weights in high
    precision, over the first samples; nothing without `model.fp8`. Collective.

    Args:
        logprobs: of the FP8 policy, unperturbed, by sample id; None for no comparison.
    """
    if learner.config.model.fp8 is None or logprobs is None:
        return {}
    few = sorted(trajectories, key=lambda t: t.sample_id)[:COMPARED_SAMPLES]
    temperature = learner.config.rollout.temperature
    with without_fp8(learner.policy_config):
        high = token_logprobs(learner, [as_sequence(t) for t in few], temperature)
    ours, theirs = (
        np.concatenate([of[t.sample_id].numpy() for t in few]) for of in (logprobs, high)
    )
    mask = np.concatenate([t.loss_mask for t in few])
    found = mismatch_metrics(ours, theirs, mask, np.zeros(len(mask), dtype=int), "fp8")
    return {name: found[name] for name in ("fp8/k3", "fp8/abs_diff_mean")}


def fp8_update_metrics(learner: Learner, counts: Counter[str]) -> dict[str, float]:
    """Returns metrics of a step's updates, over all layers and ranks. Collective.

    alp/fp8_surviving_fraction: see `fp8.linear.count_surviving`; of one micro-batch of the first
        update.
    fp8/amax_*: the largest absolute value of the linear layers' operands (emulation only).
    fp8/amax_growth_*: the largest amax over what its scale, made of earlier ones, has room for;
        above 1 the largest values saturated (emulation of the delayed recipe only).

    Args:
        counts: of all updates of the step.
    """
    if learner.config.model.fp8 is None:
        return {}
    metrics = {}
    if counts["fp8_total"]:
        metrics["alp/fp8_surviving_fraction"] = counts["fp8_changed"] / counts["fp8_total"]
    if learner.policy_config.emulated_fp8 is None:
        return metrics
    linears = [m for c in learner.chunks for m in c.modules() if isinstance(m, EmulatedFp8)]
    peaks = torch.stack([linear.fp8_meter.take() for linear in linears]).amax(0)
    dist.all_reduce(peaks, op=dist.ReduceOp.MAX)
    kinds = ["amax"]
    if learner.config.model.fp8.recipe == "delayed":
        kinds.append("amax_growth")
    for kind, values in zip(kinds, peaks.tolist(), strict=False):
        pairs = zip(OPERANDS, values, strict=True)
        metrics |= {f"fp8/{kind}_{operand}": value for operand, value in pairs}
    return metrics
