"""What the training processes do in test_train."""

from dataclasses import replace
from pathlib import Path

from alp_megatron.learner.learner import Learner
from alp_megatron.perturbation import NoiseKey
from alp_megatron.rollout.settings import engine_settings
from alp_megatron.rollout.vllm.engine import VllmEngine
from alp_megatron.trainer.step import update_policy
from alp_megatron.trainer.sync import WeightSync
from alp_megatron.weights.export import WeightExport
from alp_megatron.weights.hf_model import save_hf


def running_and_fresh_scores(config, rank, trajectories, sequences, directory) -> list:
    """Scores of an engine that had two syncs, and of one started from the export after them."""
    learner = Learner(config, rank.device)
    export = WeightExport(learner.chunks, learner.hf["model_type"])
    settings = engine_settings(config, rank.device.type)
    engine = VllmEngine(settings, Path(directory) / "running.log") if rank.is_first else None
    sync = WeightSync(learner, export, engine)
    scores = [engine.score(sequences)] if engine else []
    for version in (1, 2):
        update_policy(learner, trajectories, None, NoiseKey(1, version, 0))
        sync.push(version)
        if engine:
            scores.append(engine.score(sequences))
    save_hf(export, config.model.path, Path(directory) / "hf", learner.rollout_dtype)
    if engine:
        engine.close()
        exported = replace(settings, model_dir=f"{directory}/hf")
        with VllmEngine(exported, Path(directory) / "fresh.log") as fresh:
            scores.append(fresh.score(sequences))
    return scores
