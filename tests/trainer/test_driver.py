"""The driver numbers and scores what an engine samples."""

from types import SimpleNamespace

import pytest

from alp_megatron.config.load import config_from
from alp_megatron.data.minibatch import MiniBatch
from alp_megatron.trainer.driver import Driver
from tests.support.fake_engine import FakeEngine

ITEMS = [SimpleNamespace(prompt_ids=[1, 2]), SimpleNamespace(prompt_ids=[3])]
TASK = SimpleNamespace(
    train_batch=lambda step: ITEMS,
    eval_items=lambda: ITEMS,
    rewards=lambda items, responses: [float(len(items) + i) for i in range(len(responses))],
)


@pytest.fixture
def driver():
    tree = {
        "model": {"path": "x"},
        "rollout": {"samples_per_prompt": 3, "max_new_tokens": 5},
        "evaluation": {"samples_per_prompt": 2},
    }
    return Driver(config_from(tree), FakeEngine(), TASK, (2,))


def test_numbers_go_on_from_step_to_step(driver):
    trajectories = driver.rollout(step=4)
    assert [t.sample_id for t in trajectories] == list(range(24, 30))
    assert [t.group_id for t in trajectories] == [8, 8, 8, 9, 9, 9]
    assert [t.prompt_ids for t in trajectories] == [[1, 2]] * 3 + [[3]] * 3
    again, other = driver.rollout(step=4), driver.rollout(step=5)
    assert again == trajectories
    assert [t.response_ids for t in other] != [t.response_ids for t in trajectories]


def test_what_is_not_scored_cannot_be_trained_on(driver):
    trajectories = driver.rollout(step=0)
    assert {t.reward for t in trajectories} == {t.advantage for t in trajectories} == {None}
    with pytest.raises(AssertionError, match="not scored"):
        MiniBatch.of(driver.config.objective, trajectories, None)
    driver.reward(0, trajectories)
    assert [t.reward for t in trajectories] == [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
    assert [round(t.advantage, 3) for t in trajectories] == [-1, 0, 1] * 2
    assert MiniBatch.of(driver.config.objective, trajectories, None).num_sequences == 6


def test_the_score_is_the_mean_over_all_answers(driver):
    assert driver.evaluate() == (4 + 5 + 6 + 7) / 4
