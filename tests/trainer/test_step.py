"""The updates of a step: each has noise of its own; the pass over the old weights is made, and
booked, only where something needs it."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from alp_megatron.config.load import config_from
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.perturbation import NoiseKey
from alp_megatron.trainer import step as trainer_step
from alp_megatron.trainer.record import has_mismatch


@pytest.mark.parametrize(
    ("overrides", "made"),
    [
        # (step 0, step 1, step 2, step 3): what the pass of each step is booked as
        (["objective.method=alp"], ["clean_logprobs"] * 4),
        (["objective.method=alp", "logging.clean_mismatch_interval=0"], [None] * 4),
        (
            ["objective.method=bypass", "logging.clean_mismatch_interval=2"],
            ["clean_logprobs", None] * 2,
        ),
        (["objective.method=grpo", "logging.clean_mismatch_interval=0"], ["old_logprobs"] * 4),
        (["objective.method=icepop"], ["old_logprobs"] * 4),
        (["objective.method=alp", "objective.correction.veto=1e-4"], ["old_logprobs"] * 4),
    ],
)
def test_when_the_pass_is_made(monkeypatch, overrides, made):
    monkeypatch.setattr(trainer_step, "token_logprobs", lambda *arguments: {"its": "result"})
    monkeypatch.setattr(trainer_step, "sigmas", lambda *arguments: [[0.0]])
    config = config_from({"model": {"path": "x"}}, overrides)
    learner = SimpleNamespace(config=config, chunks=[])
    for step, name in enumerate(made):
        wanted = has_mismatch(config, step)
        result = trainer_step.update_step(learner, [], step, measure_before=wanted)
        assert (result.logprobs_before is not None) == (name is not None)
        assert {part for part, spent in result.seconds.items() if spent > 0} == {name} - {None}


class Learner:
    """A learner that keeps the noise of its updates, and computes nothing."""

    def __init__(self, config):
        self.config, self.chunks, self.noise = config, [], []

    def update(self, batches, temperature, loss, noise):
        self.noise.append(noise)
        kept = {"tokens": {"sample_id": torch.zeros(1)}, "loss": 0.0}
        return SimpleNamespace(kept=[kept], grad_norm=0.0, skipped=False)


def noise_of(monkeypatch, step, *overrides):
    """The noise of each update of a step of 8 samples in 4 mini-batches."""
    batch = SimpleNamespace(counts=SimpleNamespace())
    monkeypatch.setattr(trainer_step, "replica_microbatches", lambda *arguments: [batch])
    monkeypatch.setattr(trainer_step.MiniBatch, "loss_inputs", lambda *arguments: None)
    monkeypatch.setattr(trainer_step, "gather_from_replicas", lambda kept: kept)
    monkeypatch.setattr(trainer_step.Counts, "over_all_ranks", lambda counts: Counter())
    monkeypatch.setattr(trainer_step, "sigmas", lambda *arguments: [[0.0]])
    overrides = ["trainer.global_batch_size=2", "seed=5", *overrides]
    learner = Learner(config_from({"model": {"path": "x"}}, overrides))
    samples = [Trajectory(i, i, [1], [2], [1], [-1.0], 0, advantage=0.0) for i in range(8)]
    trainer_step.update_step(learner, samples, step)
    return learner.noise


def test_every_update_has_noise_of_its_own(monkeypatch):
    keys = [key for step in (0, 7) for key in noise_of(monkeypatch, step)]
    assert keys == [NoiseKey(5, step, update) for step in (0, 7) for update in range(4)]
    assert len({key.words() for key in keys}) == len(keys)


def test_a_method_without_noise_gets_none(monkeypatch):
    assert noise_of(monkeypatch, 3, "objective.method=bypass") == [None] * 4
