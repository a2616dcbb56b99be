"""The metric keys that every step's record holds, as data."""

from collections.abc import Mapping

RATIO = ("mean", "std", "min", "max", "p01", "p02", "p50", "p98", "p99")
CLIP = ("clip_low", "clip_high", "dual_clip")
MISMATCH = (
    "k1",
    "k3",
    "chi2_token",
    "chi2_seq",
    "abs_diff_mean",
    "abs_diff_max",
    "prob_pearson",
    "token_mult_prob_error",
    "ess",
)
PHASES = ("rollout", "reward", "train", "sync")


def clipped_share(record: Mapping[str, float]) -> float:
    """Share of a step's tokens whose gradient a bound of the ratio took."""
    return sum(record[f"ratio/{name}"] for name in CLIP)


def required_keys(num_layers: int) -> list[str]:
    """Every key of one step's record, for a model of that many layers.

    `mismatch/*` is there every `logging.clean_mismatch_interval` steps, `correction/*` where the
    objective corrects, `envelope_keys` on steps that write envelopes/. `time/old_logprobs`,
    `time/clean_logprobs` and `time/envelope` are parts of `time/train`.
    With `model.fp8`: `fp8/*` and `alp/fp8_surviving_fraction` (docs/fp8.md).
    `eval/score` is the latest evaluation's; the optional `eval/step` says of which step.
    """
    return [
        "step",
        "reward/mean",
        "reward/std",
        "eval/score",
        "loss/policy",
        "grad_norm",
        "entropy",
        *(f"ratio/{name}" for name in RATIO + CLIP),
        *(f"mismatch/{name}" for name in MISMATCH),
        *(f"mismatch_perturbed/{name}" for name in MISMATCH),
        "alp/sigma_mean",
        "alp/sigma_min",
        "alp/sigma_max",
        *(f"alp/sigma_layer_{layer}" for layer in range(num_layers)),
        "alp/effective_fraction",
        *(f"time/{name}" for name in (*PHASES, "total")),
        "time/old_logprobs",
        "time/clean_logprobs",
        "time/envelope",
        "tokens/prompt",
        "tokens/response",
        "throughput/rollout_tokens_per_s",
        "throughput/train_tokens_per_s",
        "policy_version/lag_mean",
        "policy_version/lag_max",
    ]


def envelope_keys() -> list[str]:
    """What `ratio/*` and `mismatch_perturbed/*` would be without the noise, at the same weights.

    `mismatch/*` is clean as well, but of the weights that sampled, before any update.
    """
    return [
        *(f"ratio_clean/{name}" for name in RATIO + CLIP),
        *(f"mismatch_clean/{name}" for name in MISMATCH),
    ]
