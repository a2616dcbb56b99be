from collections import Counter

import numpy as np
import pytest

from alp_megatron.config.load import config_from
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.errors import UserError
from alp_megatron.metrics.tokens import TokenRatios
from alp_megatron.trainer.record import has_envelope, token_ratios
from alp_megatron.trainer.step import UpdateRecord


def trajectory(sample_id, mask, rollout):
    return Trajectory(sample_id, 0, [1], [2] * len(mask), mask, rollout, policy_version=0)


def update(ids, perturbed, clean, skipped=False):
    def arrays(logprobs):
        return {"sample_id": np.array(ids), "logprobs": np.array(logprobs, np.float32)}

    return UpdateRecord(
        arrays(perturbed), 0.0, 1.0, skipped, Counter(), clean=arrays(clean), clean_seconds=0.5
    )


TRAJECTORIES = [
    trajectory(7, [1, 0, 1], [-1.0, -2.0, -3.0]),
    trajectory(3, [1], [-0.5]),
    trajectory(5, [1, 1], [-0.25, -4.0]),
]
FIRST = update([3, 7, 7, 7], [-0.6, -1.1, -9.0, -3.1], [-0.7, -1.2, -9.0, -3.2])
SECOND = update([5, 5], [-0.3, -4.5], [-0.2, -4.25])


def test_sampled_tokens_in_the_order_of_their_updates():
    ratios = token_ratios(TRAJECTORIES, [FIRST, SECOND])
    assert ratios.sample_id.tolist() == [3, 7, 7, 5, 5]
    assert ratios.update.tolist() == [0, 0, 0, 1, 1]
    expected = {
        "rollout_logprobs": [-0.5, -1.0, -3.0, -0.25, -4.0],
        "clean_logprobs": [-0.7, -1.2, -3.2, -0.2, -4.25],
        "perturbed_logprobs": [-0.6, -1.1, -3.1, -0.3, -4.5],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(ratios, name), np.array(values, np.float32))


def test_a_skipped_update_has_no_tokens_and_keeps_the_others_index():
    nan = update([3], [np.nan], [np.nan], skipped=True)
    assert token_ratios(TRAJECTORIES, [nan, SECOND]).update.tolist() == [1, 1]
    assert len(token_ratios(TRAJECTORIES, [nan]).sample_id) == 0


def test_a_file_is_whole_or_named(tmp_path):
    path = tmp_path / "step_000009.npz"
    saved = token_ratios(TRAJECTORIES, [FIRST, SECOND])
    saved.save(path)
    loaded = TokenRatios.load(path)
    for name, array in vars(saved).items():
        np.testing.assert_array_equal(getattr(loaded, name), array)
        assert getattr(loaded, name).dtype == array.dtype
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="step_000009.npz is damaged"):
        TokenRatios.load(path)


@pytest.mark.parametrize(
    "interval, expected", [(0, []), (1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (5, [4]), (9, [4])]
)
def test_the_steps_that_have_one(interval, expected):
    tree = {
        "model": {"path": "."},
        "trainer": {"steps": 5},
        "logging": {"envelope_interval": interval},
    }
    config = config_from(tree)
    assert [step for step in range(5) if has_envelope(config, step)] == expected
