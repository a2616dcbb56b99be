"""What FP8 does to a run: the policy's change at equal weights, the operands' sizes, the noise."""

import numpy as np
import torch
import torch.distributed as dist

from alp_megatron.diagnostics.mismatch import mismatch_metrics
from alp_megatron.fp8.amax import OPERANDS
from alp_megatron.fp8.linear import EmulatedFp8
from alp_megatron.fp8.scope import without_fp8
from alp_megatron.trainer.batch import as_sequence
from alp_megatron.trainer.learner import Learner
from alp_megatron.trainer.logprobs import token_logprobs
from alp_megatron.trainer.policy_update import UpdateRecord
from alp_megatron.trajectory import Trajectory

SAMPLES = 64  # whose log-probabilities are computed in high precision as well


def fp8_mismatch(
    learner: Learner, trajectories: list[Trajectory], clean: dict | None
) -> dict[str, float]:
    """`fp8/k3` and `fp8/abs_diff_mean` of the FP8 policy, whose log-probabilities `clean` holds,
    against the same weights in high precision; of the first samples. Collective."""
    if learner.config.model.fp8 is None or clean is None:
        return {}
    few = sorted(trajectories, key=lambda t: t.sample_id)[:SAMPLES]
    temperature = learner.config.rollout.temperature
    with without_fp8(learner.policy_config):
        high = token_logprobs(learner, [as_sequence(t) for t in few], temperature)
    fp8, high = (np.concatenate([p[t.sample_id].numpy() for t in few]) for p in (clean, high))
    mask = np.concatenate([t.loss_mask for t in few])
    found = mismatch_metrics(fp8, high, mask, np.zeros(len(mask), dtype=int), "fp8")
    return {name: found[name] for name in ("fp8/k3", "fp8/abs_diff_mean")}


def fp8_update_metrics(learner: Learner, updates: list[UpdateRecord]) -> dict[str, float]:
    """Of the step's updates, over all layers and ranks. Collective.

    alp/fp8_surviving_fraction: see `fp8.survival`; of one micro-batch of the first update.
    fp8/amax_*: the largest absolute value of the linear layers' operands (emulation only).
    fp8/amax_growth_*: the largest amax over what its scale, made of earlier ones, has room for;
        above 1 the largest values saturated (emulation of the delayed recipe only).
    """
    if learner.config.model.fp8 is None:
        return {}
    metrics = {}
    total = sum(u.fp8_total for u in updates)
    if total:
        metrics["alp/fp8_surviving_fraction"] = sum(u.fp8_changed for u in updates) / total
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
