"""Log-probabilities of the Transformer Engine spec against transformers'."""

import torch

from benchmarks.gpu.models import model_directory, samples, training_config
from benchmarks.gpu.one_rank import one_rank
from benchmarks.gpu.part import Found, Goal, need

# Fusions of Megatron's that round in other places: which are nearest to a bf16 engine?
CHOICES = {
    "as configured": {},
    "unfused rope": {"apply_rope_fusion": False},
    "fused SwiGLU": {"bias_activation_fusion": True},
}


def specs_agree() -> Found:
    """Our model in bf16, and transformers' in bf16, against transformers' in fp32.

    Both bf16 models round; a wrong rotation, scale or norm would make ours the worse one. The
    distance between the two bf16 models is what another engine's rounding costs.
    """
    need("megatron", "transformer_engine", "transformers")
    from alp_megatron.data.minibatch import as_sequence

    path = model_directory("tiny")
    config = training_config(path, "alp", None)
    with one_rank(config) as rank:
        from alp_megatron.learner.learner import Learner, token_logprobs

        learner = Learner(config, rank.device, training=False)
        trajectories = samples(learner.policy_config.vocab_size)
        sequences = [as_sequence(t) for t in trajectories]
        ours = {}
        for name, options in CHOICES.items():
            usual = {key: getattr(learner.policy_config, key) for key in options}
            _set(learner.policy_config, options)
            found = token_logprobs(learner, sequences)
            ours[name] = torch.cat([found[t.sample_id] for t in trajectories])
            _set(learner.policy_config, usual)
    exact = _transformers_logprobs(path, trajectories, torch.float32)
    theirs = _transformers_logprobs(path, trajectories, torch.bfloat16)
    usual_error = _mean_error(theirs, exact)
    figures = {"transformers bf16": {"from_fp32": usual_error}}
    for name, values in ours.items():
        figures[name] = {
            "from_fp32": _mean_error(values, exact),
            "from_transformers_bf16": _mean_error(values, theirs),
        }
    ratio = figures["as configured"]["from_fp32"] / usual_error
    goals = [Goal("our bf16 error over transformers' bf16 error", ratio, at_most=1.5)]
    return Found(figures, goals, "mean |difference| of a log-probability, nats; random weights")


def _set(config, options: dict) -> None:
    for key, value in options.items():
        setattr(config, key, value)


def _mean_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().mean())


def _transformers_logprobs(path: str, trajectories: list, dtype: torch.dtype) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map="cuda")
    found = []
    for t in trajectories:
        tokens = torch.tensor([[*t.prompt_ids, *t.response_ids]], device="cuda")
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1]
        logprobs = logits.float().log_softmax(-1)
        first = len(t.prompt_ids)
        found.append(logprobs.gather(1, tokens[0, 1:, None])[first - 1 :, 0].cpu())
    return torch.cat(found)
