"""What the training processes do for the measure of checkpoints."""

import shutil
import time
from pathlib import Path

import torch.distributed as dist

from alp_megatron.learner.learner import Learner
from alp_megatron.learner.saver import CheckpointSaver
from alp_megatron.learner.state import metadata, sharded_state
from alp_megatron.learner.writer import save_now
from alp_megatron.weights.export import WeightExport
from alp_megatron.weights.hf_model import save_hf


def save_seconds(config, rank, directory: str, rounds: int) -> dict:
    """Seconds that the main thread is held up by a save beside the training (`start`, `finish`),
    and by a `synchronous` one, in turn; the first round warms up. `collect` is the part of either
    in which Megatron brings the optimizer's state into the form of the checkpoint."""
    learner = Learner(config, rank.device)
    form = metadata(config)
    sharded_state(learner, form, loading=True)  # makes the optimizer's moments, as a step would
    export = WeightExport(learner.chunks, learner.hf["model_type"])
    run_dir, plain = Path(directory) / "run", Path(directory) / "plain"
    saver = CheckpointSaver(run_dir, learner, export)
    seconds: dict[str, list[float]] = {
        name: [] for name in ("collect", "start", "finish", "synchronous")
    }
    for step in range(rounds + 1):
        seconds["collect"].append(_seconds(lambda: sharded_state(learner, form, loading=False)))
        seconds["start"].append(_seconds(lambda step=step: saver.start(step, {})))
        while not saver.written():
            time.sleep(0.1)  # where the training's next steps would be
        seconds["finish"].append(_seconds(saver.finish))
        if rank.is_first:
            (plain / "state").mkdir(parents=True)
        seconds["synchronous"].append(_seconds(lambda: _save_at_once(learner, export, plain)))
        if rank.is_first:
            shutil.rmtree(plain)
    size = sum(p.stat().st_size for p in run_dir.rglob("*") if p.is_file())
    return {name: values[1:] for name, values in seconds.items()} | {"bytes": size}


def _save_at_once(learner: Learner, export: WeightExport, directory: Path) -> None:
    form = metadata(learner.config)
    state = sharded_state(learner, form, loading=False)
    save_now(state, directory / "state", content_metadata=form)
    save_hf(export, learner.config.model.path, directory / "hf", learner.rollout_dtype)


def _seconds(action) -> float:
    dist.barrier()
    started = time.perf_counter()
    action()
    dist.barrier()
    return time.perf_counter() - started
