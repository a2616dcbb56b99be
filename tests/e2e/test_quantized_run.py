"""The real command with a quantised engine: verified syncs, steps, and a report that says so."""

import pytest

from tests.support.runs import QUIET, Command, records, train_arguments

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_a_quantised_run(tmp_path, quantization):
    run_dir = tmp_path / "run"
    arguments = train_arguments(run_dir, 3, *QUIET, f"rollout.quantization={quantization}")
    command = Command(tmp_path, *arguments)
    try:
        assert command.wait(400) == 0, command.text()
        assert "first weight sync verified" in command.out
        command.check_nothing_is_left()
    finally:
        command.end()
    lines = records(run_dir)
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:
        # Updates that did not arrive would leave the engine behind by more and more.
        assert 0 < line["mismatch_before/k3"] < 0.01 and line["policy_version/lag_max"] == 0
    page = (run_dir / "report.html").read_text()
    assert f"bfloat16, linear layers quantised to {quantization}" in page
