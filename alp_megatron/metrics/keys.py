"""Names the metric keys that every step's record holds."""

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


# What a prefix was called in the first edition, whose metrics.jsonl files are read as well.
_FORMER_PREFIXES = {
    "mismatch": "mismatch_before",
    "mismatch_clean": "mismatch_during_clean",
    "mismatch_perturbed": "mismatch_during_perturbed",
}


def present_name(key: str) -> str:
    """Returns a metric's name of today for that of today or of the first edition."""
    prefix, slash, name = key.partition("/")
    return _FORMER_PREFIXES.get(prefix, prefix) + slash + name


def clipped_share(record: Mapping[str, float]) -> float:
    """Returns the share of a step's tokens whose gradient a bound of the ratio took."""
    return sum(record[f"ratio/{name}"] for name in CLIP)


def required_keys(num_layers: int) -> list[str]:
    """Returns every key of one step's record, for a model of that many layers.

    `mismatch_before/*` is there every `logging.clean_mismatch_interval` steps, `correction/*`
    where the objective corrects, `envelope_keys` on steps that write envelopes/.
    `time/old_logprobs`, `time/clean_logprobs` and `time/envelope` are parts of `time/train`.
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
        *(f"mismatch_before/{name}" for name in MISMATCH),
        *(f"mismatch_during_perturbed/{name}" for name in MISMATCH),
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
    """Returns the keys of what the updates' ratio and mismatch would be without the noise.

    `mismatch_before/*` is clean as well, but at the weights before the step's updates.
    """
    return [
        *(f"ratio_clean/{name}" for name in RATIO + CLIP),
        *(f"mismatch_during_clean/{name}" for name in MISMATCH),
    ]
