"""Sends the trainer's weights to the running rollout engine."""

import torch.distributed as dist

from alp_megatron.data.minibatch import as_sequence
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.hf.tensors import HfTensors
from alp_megatron.learner.learner import Learner, token_logprobs
from alp_megatron.rollout.engine import RolloutEngine
from alp_megatron.runtime.mesh import from_first_rank
from alp_megatron.trainer.driver import Driver
from alp_megatron.weights.export import WeightExport
from alp_megatron.weights.quantize.scheme import is_linear, rollout_scheme
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


class WeightSync:
    """Streams the learner's weights into the rollout engine. All methods are collective.

    Codes are made of the weights in rollout.dtype, as they are from the `hf/` of a checkpoint.

    Args:
        export: of the learner's weights.
        engine: lives on rank 0; None on the others.
    """

    def __init__(self, learner: Learner, export: WeightExport, engine: RolloutEngine | None):
        config = learner.config
        self._learner, self._export, self._engine = learner, export, engine
        self._dtype, self._scheme = learner.rollout_dtype, rollout_scheme(config)
        noise = config.rollout.weight_noise
        self._noise = WeightNoise(noise, config.seed) if noise else None

    def push(self, version: int) -> None:
        """Makes the engine sample with the present weights, under this version."""
        weights = self._export.stream(self._dtype)
        if self._noise is not None:
            weights = self._noise.added(weights, version)
        stream = quantized(weights, self._scheme)
        if self._engine is not None:
            self._engine.update_weights(stream, version)
        else:
            _run_through(stream)

    def verify(
        self, version: int, driver: Driver | None, base: HfTensors | None
    ) -> dict[str, float]:
        """Pushes for the first time and proves that the engine has the weights: by the fingerprint
        of every tensor, then by log-probabilities.

        Noise in the engine's weights comes last: it would hide what is looked for.

        Args:
            driver: on rank 0.
            base: the model that the run started from, if nothing has been trained yet.

        Returns what `check_logprobs` returns, on rank 0. Raises SyncError.
        """
        if base is not None:
            self._check_base(base)
        stream = quantized(self._export.stream(self._dtype), self._scheme)
        trajectories: list[Trajectory] = []
        if driver is not None and self._engine is not None:
            sent = Digests()
            received = self._engine.update_weights(sent.record(stream), version, digests=True)
            check_same_tensors(sent.of, received)
            self._check_codes(sent, base)
            trajectories = driver.rollout(step=0)[:GATE_SAMPLES]
            check_version({t.policy_version for t in trajectories}, version)
        else:
            _run_through(stream)
        agreement = self._compare_logprobs(from_first_rank(trajectories))
        if self._noise is not None:
            self.push(version)
        dist.barrier()
        return agreement

    def _check_base(self, base: HfTensors) -> None:
        """Checks that the untrained weights, in the trainer's own dtype, are the base model's.

        Before the cast to the engine's dtype, which would hide a change in the lowest bits.
        Weights that are held in FP8 are the base model's within its rounding.
        """
        policy = self._learner.policy_config
        exported = Digests()
        for name, tensor in exported.record(self._export.stream(policy.params_dtype)):
            if policy.fp8_param and is_linear(name):
                del exported.of[name]
                check_rounded_against_checkpoint(name, tensor, base)
        if exported.of:  # on rank 0
            check_against_checkpoint(exported.of, base, policy.params_dtype)

    def _check_codes(self, sent: Digests, base: HfTensors | None) -> None:
        policy = self._learner.policy_config
        held_in_fp8 = policy.fp8_param  # their codes are not those of the base
        if base is None or self._scheme is None or held_in_fp8:
            return
        check_codes_against_checkpoint(
            sent.of, base, policy.params_dtype, self._dtype, self._scheme
        )

    def _compare_logprobs(self, trajectories: list[Trajectory]) -> dict[str, float]:
        responses = [as_sequence(t) for t in trajectories]
        ours = token_logprobs(self._learner, responses)
        if self._engine is None:
            return {}
        rollout = self._learner.config.rollout
        theirs = self._engine.score([s.token_ids for s in responses])
        return check_logprobs(
            [ours[s.sample_id].tolist() for s in responses],
            [row[s.first_predicted - 1 :] for s, row in zip(responses, theirs, strict=True)],
            rollout.gate_mean_abs_diff or GATE[rollout.quantization],
        )


def _run_through(stream) -> None:
    """Takes this rank's part in the export, whose tensors go to rank 0."""
    for _ in stream:
        pass
