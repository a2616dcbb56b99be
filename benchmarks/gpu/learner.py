"""A tiny learner on Transformer Engine: updates, resume, and FP8 with recomputation."""

import copy
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.models import model_directory, samples, training_config
from benchmarks.gpu.one_rank import one_rank
from benchmarks.gpu.part import Found, Goal, need


def resumes() -> Found:
    """Update, save, update; then resume and the second update again. cuDNN's backward pass sums
    in any order: nearly equal must do."""
    need("megatron", "transformer_engine", "transformers")
    config = training_config(model_directory("tiny"), "alp", None)
    config.trainer.lr = 1e-3
    with one_rank(config) as rank, tempfile.TemporaryDirectory() as run_dir:
        figures = _save_and_resume(config, rank, Path(run_dir))
    goals = [
        Goal("loaded as saved", figures["loaded_as_saved"], at_least=1),
        Goal("error of the resumed update of weights", figures["weight_error"], at_most=1e-3),
        Goal("error of the resumed update of s_l", figures["scale_error"], at_most=1e-3),
    ]
    return Found(figures, goals)


def _save_and_resume(config, rank, run_dir: Path) -> dict:
    from alp_megatron.learner.learner import Learner
    from alp_megatron.learner.saver import CheckpointSaver
    from alp_megatron.learner.state import load_checkpoint
    from alp_megatron.weights.export import WeightExport

    learner = Learner(config, rank.device)
    start = _parameters(learner)
    grad_norms = [_update(learner, 0)]
    saver = CheckpointSaver(
        run_dir, learner, WeightExport(learner.chunks, learner.hf["model_type"])
    )
    saver.start(1, {})
    saver.finish()
    saved = _parameters(learner)
    grad_norms.append(_update(learner, 1))
    through = _parameters(learner)
    again = Learner(config, rank.device)
    load_checkpoint(run_dir / "checkpoints" / "step_000001", again)
    loaded = _parameters(again)
    grad_norms.append(_update(again, 1))
    resumed = _parameters(again)
    scales = [n for n in start if n.endswith("log_sigma_scale")]
    return {
        "grad_norms": grad_norms,
        "loaded_as_saved": all(torch.equal(loaded[n], saved[n]) for n in saved),
        "weight_error": _distance(resumed, through, saved, [n for n in start if n not in scales]),
        "scale_error": _distance(resumed, through, saved, scales),
        "moved": _distance(through, start, None, list(start)),
    }


def _parameters(learner) -> dict[str, torch.Tensor]:
    return {
        f"{i}.{name}": parameter.detach().float().clone()
        for i, chunk in enumerate(learner.chunks)
        for name, parameter in chunk.named_parameters()
    }


def _distance(a: dict, b: dict, before: dict | None, names: list[str]) -> float:
    """|a - b| over |b - before|: an update's error in units of the update."""
    difference = sum(float((a[n] - b[n]).square().sum()) for n in names)
    size = sum(float((b[n] - (before[n] if before else 0)).square().sum()) for n in names)
    return (difference / size) ** 0.5


def _update(learner, index: int) -> float:
    from alp_megatron.perturbation import NoiseKey
    from alp_megatron.trainer.step import update_policy

    trajectories = samples(learner.policy_config.vocab_size)
    return update_policy(learner, trajectories, None, NoiseKey(1, index, 0)).grad_norm


def delayed_with_recompute() -> Found:
    """The delayed recipe with whole layers recomputed, also after a log-prob pass, must give what
    it gives without recomputation. The pass itself counts: its amax is in the next scales."""
    need("megatron", "transformer_engine", "transformers")
    figures: dict = {}
    path = model_directory("tiny")
    plain = training_config(path, "alp", "delayed")
    recomputing = copy.deepcopy(plain)
    recomputing.model.recompute_granularity = "full"
    bf16 = training_config(path, "alp", None)
    for name, config, scored in (
        ("bf16", bf16, False),
        ("delayed", plain, False),
        ("delayed, after a log-prob pass", plain, True),
        ("delayed, recomputed", recomputing, False),
        ("delayed, recomputed, after a log-prob pass", recomputing, True),
    ):
        with one_rank(config) as rank:
            figures[name] = _grad_norms(config, rank, scored)
    goals = [
        Goal(f"{name}: gradient norms off by", _largest_error(figures, name, plain), at_most=1e-3)
        for name, plain in (
            ("delayed, recomputed", "delayed"),
            ("delayed, recomputed, after a log-prob pass", "delayed, after a log-prob pass"),
        )
    ]
    return Found(figures, goals, "gradient norms of three updates at a learning rate of 0")


def _largest_error(figures: dict, name: str, reference: str) -> float:
    return max(abs(a / b - 1) for a, b in zip(figures[name], figures[reference], strict=True))


def _grad_norms(config, rank, scored: bool) -> list[float]:
    """Of updates that change nothing but the recipe's scales; before each, maybe, a log-prob
    pass."""
    from alp_megatron.data.minibatch import as_sequence
    from alp_megatron.learner.learner import Learner, token_logprobs

    config.trainer.lr = 0.0
    config.perturbation.perturb_lr = 0.0
    learner = Learner(config, rank.device)
    sequences = [as_sequence(t) for t in samples(learner.policy_config.vocab_size)]
    norms = []
    for index in range(3):
        if scored:
            token_logprobs(learner, sequences)
        norms.append(_update(learner, index))
    return norms


def fp32_residual() -> Found:
    """Whether Transformer Engine takes hidden states in fp32 between bf16 layers."""
    need("megatron", "transformer_engine", "transformers")
    path = model_directory("tiny")
    config = training_config(path, "alp", None)
    config.model.fp32_residual_connection = True
    with one_rank(config) as rank:
        from alp_megatron.learner.learner import Learner

        norm = _update(Learner(config, rank.device), 0)
    return Found({"grad_norm": norm})
