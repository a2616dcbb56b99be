"""The real command with emulated FP8 layers and a quantised engine: it trains, and resumes."""

import pytest

from tests.e2e.runs import QUIET, Command, records, train_arguments

pytestmark = pytest.mark.slow

FP8 = ["model.fp8.recipe=delayed", "model.fp8.amax_history_len=4", "rollout.quantization=int8"]


def test_an_fp8_run_and_its_resumption(tmp_path):
    run_dir = tmp_path / "run"
    for steps, more in ((1, []), (2, ["--resume"])):
        arguments = train_arguments(run_dir, steps, *QUIET, *FP8)
        command = Command(tmp_path, *arguments, *more)
        try:
            assert command.wait(500) == 0, command.text()
            command.check_nothing_is_left()
        finally:
            command.end()
    lines = records(run_dir)
    assert [line["step"] for line in lines] == [0, 1]
    for line in lines:
        assert 0 < line["mismatch/k3"] < 0.01 and 0 < line["fp8/k3"] < 0.01
        assert 0.02 < line["alp/fp8_surviving_fraction"] < 0.9
        assert line["fp8/amax_growth_weight"] < 1.1
