"""The pass over the old weights is made, and booked, only where something needs it."""

from types import SimpleNamespace

import pytest

from alp_megatron.config.load import config_from
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
    monkeypatch.setattr(trainer_step, "sigmas", lambda *arguments: [0.0])
    config = config_from({"model": {"path": "x"}}, overrides)
    learner = SimpleNamespace(config=config, chunks=[])
    for step, name in enumerate(made):
        wanted = has_mismatch(config, step)
        result = trainer_step.update_step(learner, [], step, measure_before=wanted)
        assert (result.logprobs_before is not None) == (name is not None)
        assert {part for part, spent in result.seconds.items() if spent > 0} == {name} - {None}
