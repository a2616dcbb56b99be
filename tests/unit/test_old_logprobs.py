"""The pass over the old weights is made, and booked, only where something needs it."""

from types import SimpleNamespace

import pytest

from alp_megatron.config.load import config_from
from alp_megatron.trainer import loop


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
    monkeypatch.setattr(loop, "token_logprobs", lambda *arguments: {"its": "result"})
    run = SimpleNamespace(config=config_from({"model": {"path": "x"}}, overrides), learner=None)
    for step, name in enumerate(made):
        seconds = {"old_logprobs": 0.0, "clean_logprobs": 0.0}
        result = loop.old_logprobs(run, step, [], seconds)
        assert (result is not None) == (name is not None)
        assert {phase for phase, spent in seconds.items() if spent > 0} == {name} - {None}
