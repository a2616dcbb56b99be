"""What ratio envelopes are drawn of: which steps write it, and how it follows from the updates."""

import numpy as np

from alp_megatron.config.schema import Config
from alp_megatron.diagnostics.token_ratios import TokenRatios
from alp_megatron.trainer.policy_update import UpdateRecord
from alp_megatron.trajectory import Trajectory


def has_envelope(config: Config, step: int) -> bool:
    """Whether the step, counted from 0, writes envelopes/ and the metrics of `envelope_keys`."""
    interval, done = config.logging.envelope_interval, step + 1
    return interval > 0 and (done % interval == 0 or done == config.trainer.steps)


def token_ratios(trajectories: list[Trajectory], updates: list[UpdateRecord]) -> TokenRatios:
    """The sampled tokens of the updates that were made, update after update, by sample id.

    Args:
        trajectories: at least those that the updates trained on.
        updates: in order, each with its `clean` arrays.
    """
    by_id = {t.sample_id: t for t in trajectories}
    parts = [
        _of_update(by_id, index, update)
        for index, update in enumerate(updates)
        if not update.skipped  # it may hold numbers that are not finite
    ]
    return TokenRatios(
        *(np.concatenate(arrays) for arrays in zip(*parts or [_NOTHING], strict=True))
    )


_NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int32), *[np.zeros(0, np.float32)] * 3)


def _of_update(by_id: dict[int, Trajectory], index: int, update: UpdateRecord) -> tuple:
    """The fields of TokenRatios, in their order."""
    assert update.clean is not None
    sample_id = update.tokens["sample_id"]
    members = [by_id[i] for i in np.unique(sample_id).tolist()]
    sampled = np.concatenate([t.loss_mask for t in members]) > 0
    rollout = np.concatenate([t.rollout_logprobs for t in members])
    return (
        sample_id[sampled].astype(np.int64),
        np.full(sampled.sum(), index, np.int32),
        rollout[sampled].astype(np.float32),
        update.clean["logprobs"][sampled].astype(np.float32),
        update.tokens["logprobs"][sampled].astype(np.float32),
    )
