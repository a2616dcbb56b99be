"""What the training process does in the tests of this folder."""

from pathlib import Path

from alp_megatron.trainer.loop import train
from alp_megatron.trainer.run import build_run
from tests.support.fake_engine import FakeEngine


def loop(config, rank, resume: bool = False) -> dict:
    """A run on a fake engine: whether it came to its end, and the versions the engine was sent."""
    Path(config.run_dir).mkdir(exist_ok=True)
    engine = FakeEngine()
    run = build_run(config, rank, engine, resume)
    run.driver.task.rewards = _rewards
    ended = train(run)
    run.close()
    return {"ended": ended, "versions": engine.versions, "counters": run.counters()}


def _rewards(items, responses) -> list[float]:
    return [float(sum(response) % 2) for response in responses]
