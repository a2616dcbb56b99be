"""What the training processes do in the tests of the trainer."""

from pathlib import Path
from unittest.mock import patch

import torch

from alp_megatron.errors import RunError, UserError
from alp_megatron.learner import learner
from alp_megatron.trainer.loop import train
from alp_megatron.trainer.run import build_run
from tests.support.fake_engine import FakeEngine


def loop(config, rank, resume: bool = False) -> dict:
    """A run on a fake engine: whether it came to its end, and what the engine was sent."""
    engine = FakeEngine()
    run = _built(config, rank, engine, resume)
    ended = train(run)
    run.close()
    counters, sent = run.counters(), engine.received
    return {"ended": ended, "versions": engine.versions, "counters": counters, "sent": sent}


def sentence_at_the_end(config, rank, resume: bool = False) -> str:
    """What ends a run on a fake engine."""
    try:
        train(_built(config, rank, FakeEngine(), resume))
    except UserError as error:
        return str(error)
    raise AssertionError("it came to its end")


def sentence_of_first_sync(
    config, rank, parameter: str = "", bit: int = 0, tensor: str | None = None
) -> str:
    """What is said where one bit is changed: of a parameter when it has been loaded, or of a tensor
    on its way to the engine."""
    load = learner.load_hf

    def load_spoilt(chunks, *arguments):
        load(chunks, *arguments)
        weights = dict(chunks[0].named_parameters()).get(parameter)
        if weights is not None:
            weights.data.view(-1)[:1].view(torch.int32).bitwise_xor_(1 << bit)

    try:
        with patch.object(learner, "load_hf", load_spoilt):
            _built(config, rank, FakeEngine(tensor), resume=False)
    except RunError as error:
        return str(error)
    raise AssertionError("nothing was noticed")


def _built(config, rank, engine, resume):
    Path(config.run_dir).mkdir(exist_ok=True)
    run = build_run(config, rank, engine, resume)
    run.driver.task.rewards = _rewards
    return run


def _rewards(items, responses) -> list[float]:
    return [float(sum(response) % 2) for response in responses]
