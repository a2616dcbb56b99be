"""What the training processes do in test_checkpoint."""

import threading
from pathlib import Path

from alp_megatron.data.minibatch import as_sequence
from alp_megatron.learner.learner import Learner, token_logprobs
from alp_megatron.learner.optimizer import log_scales, sigmas
from alp_megatron.learner.saver import CheckpointSaver
from alp_megatron.learner.state import load_checkpoint, newest_whole
from alp_megatron.perturbation import NoiseKey
from alp_megatron.runtime.mesh import from_first_rank
from alp_megatron.trainer.step import update_policy
from alp_megatron.weights.export import WeightExport


def save_and_go_on(config, rank, run_dir: str, trajectories: list) -> list[dict]:
    """Two steps, a checkpoint, and three more before it is written: those three's figures."""
    learner = Learner(config, rank.device)
    _steps(learner, trajectories, 0, 2)
    saver = CheckpointSaver(
        Path(run_dir), learner, WeightExport(learner.chunks, learner.hf["model_type"])
    )
    trained = threading.Event()
    saver._thread.submit(trained.wait)  # a slow disk
    saver.start(2, {})
    figures = _steps(learner, trajectories, 2, 5)
    trained.set()
    saver.finish()
    return figures


def load_and_go_on(config, rank, run_dir: str, trajectories: list) -> list[dict]:
    """The same three steps, from the checkpoint."""
    learner = Learner(config, rank.device)
    load_checkpoint(newest_whole(Path(run_dir)), learner)
    return _steps(learner, trajectories, 2, 5)


def _steps(learner, trajectories, first, end) -> list[dict]:
    """Loss, gradient norm, s_l and the new log-probabilities, after each step."""
    figures = []
    for step in range(first, end):
        update = update_policy(learner, trajectories, None, NoiseKey(7, step, 0))
        sequences = [as_sequence(t) for t in trajectories]
        scales = sigmas([log_scales(learner.chunks)], learner.config.perturbation.sigma0)[0]
        figures.append(
            {
                "logprobs": token_logprobs(learner, sequences),
                "loss": update.loss,
                "grad_norm": update.grad_norm,
            }
            | {f"sigma_{layer}": sigma for layer, sigma in enumerate(scales)}
        )
    return from_first_rank(figures)
