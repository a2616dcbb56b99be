import random

import pytest

from alp_megatron.tasks.arithmetic import Problem, problems, worked_solution
from alp_megatron.tasks.reward import exact


def test_answers_agree_with_python():
    for problem in problems(0, 500, "train"):
        assert problem.answer == eval(problem.text)
        assert min(problem.results) >= 0


def test_the_worked_solution_is_right_line_by_line():
    assert worked_solution(Problem((7, 8, 3, 6), "+-+")) == "7+8=15;15-3=12;12+6=18"
    for problem in problems(0, 200, "train"):
        solution = worked_solution(problem)
        for line in solution.split(";"):
            left, right = line.split("=")
            assert eval(left) == int(right)
        assert 12 <= len(solution) + 1 <= 24
        assert exact(solution, str(problem.answer)) == 1.0


def test_problems_are_a_function_of_their_arguments():
    assert problems(3, 50, "eval") == problems(3, 50, "eval")
    assert problems(3, 50, "eval") != problems(4, 50, "eval")
    assert problems(3, 20, "train") == problems(3, 50, "train")[:20]


def test_the_splits_never_meet():
    train = {p.text for p in problems(0, 5000, "train")}
    held_out = {p.text for p in problems(0, 2000, "eval")}
    assert len(held_out) > 1000 and not train & held_out


@pytest.mark.parametrize("error_rate", [0.0, 0.5, 1.0])
def test_the_error_rate_is_the_share_of_wrong_guesses(error_rate):
    rng, drawn = random.Random(0), problems(0, 3000, "train")
    wrong = 0
    for problem in drawn:
        text = worked_solution(problem, error_rate=error_rate, rng=rng)
        if not exact(text, str(problem.answer)):
            assert text.startswith(f"{problem.text}=")
            wrong += 1
    deviation = (error_rate * (1 - error_rate) / len(drawn)) ** 0.5
    assert abs(wrong / len(drawn) - error_rate) <= 5 * deviation
