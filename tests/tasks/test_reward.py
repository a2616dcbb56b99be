import threading

import pytest

from alp_megatron.tasks.dataset import PromptItem
from alp_megatron.tasks.reward import exact, math_verify, score


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        ("7+8=15;15-3=12", "12", 1.0),
        ("7+8=15;15-3=12", "15", 0.0),
        ("12", "12", 1.0),
        ("The answer is 12.", "12", 1.0),
        ("x=3 or 12", "12", 1.0),
        ("12=", "12", 0.0),
        ("", "12", 0.0),
        ("=112", "12", 0.0),
        ("=-12", "12", 0.0),
        ("=-12", "-12", 1.0),
        ("= 1,024.0", "1024", 1.0),
        ("= .5", "0.50", 1.0),
        ("=٣", "3", 0.0),
        ("the colour is = blue ", "blue", 1.0),
        ("blue", "red", 0.0),
    ],
)
def test_exact(response, truth, expected):
    assert exact(response, truth) == expected


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        (r"so \boxed{\frac{1}{2}}", "0.5", 1.0),
        (r"so \boxed{x^2+2x+1}", "(x+1)^2", 1.0),
        (r"so \boxed{\frac{1}{3}}", "0.5", 0.0),
        ("the answer is 64.", "64", 1.0),
        ("", "64", 0.0),
        ("(" * 500, "64", 0.0),
        (r"\boxed{\frac{1}{0}}", "64", 0.0),
        (r"\boxed{9^{9^{9^{9}}}}", "64", 0.0),  # ends by its time limit
    ],
)
def test_math_verify(response, truth, expected):
    assert math_verify(response, truth) == expected


def test_a_ground_truth_that_cannot_be_parsed_is_reported(caplog):
    assert math_verify("64", "") == 0.0
    assert "cannot parse the ground truth" in caplog.text


def test_math_verify_says_so_outside_the_main_thread():
    errors = []

    def judge():
        try:
            math_verify("64", "63")
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_score_pairs_items_with_responses():
    items = [PromptItem([1], truth, "x") for truth in ("1", "2")]
    assert score(items, ["=1", "=1"], "exact") == [1.0, 0.0]
    with pytest.raises(ValueError):
        score(items, ["=1"], "exact")
