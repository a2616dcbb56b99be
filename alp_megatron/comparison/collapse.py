"""Which runs have collapsed, by a definition that the comparison's file fixes before the runs."""

from collections.abc import Sequence

from alp_megatron.comparison.config import CollapseConfig

_ROUNDING = 1e-9  # 0.8 - 0.6 is a little more than 0.2 in fp64


def collapse_reason(
    config: CollapseConfig, scores: Sequence[float], skipped_updates: int
) -> str | None:
    """Why a run counts as collapsed, or None.

    Args:
        scores: of the evaluations in order, the base model's first; at least that.
        skipped_updates: updates of the run that were not made, their gradient not being finite.
    """
    base, best, last = scores[0], max(scores), scores[-1]
    if best - last > config.drop + _ROUNDING:
        return f"last score {last:.3f} is more than {config.drop:g} below its best, {best:.3f}"
    if base - last > config.below_base + _ROUNDING:
        return (
            f"last score {last:.3f} is more than {config.below_base:g} below the base, {base:.3f}"
        )
    if config.skipped_updates and skipped_updates:
        return f"{skipped_updates} updates skipped as not finite"
    return None


def definition(config: CollapseConfig) -> str:
    """One sentence for the reader of a table."""
    text = (
        f"A run has collapsed if its last evaluation score is more than {config.drop:g} below its "
        f"own best one, or more than {config.below_base:g} below the base model's"
    )
    return text + (
        ", or if an update was skipped as not finite." if config.skipped_updates else "."
    )
