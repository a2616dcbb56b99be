"""The GPU proof's parts as tests: each runs, is skipped with its reason, or fails."""

import pytest
import torch

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from benchmarks.gpu.part import Skip  # noqa: E402
from benchmarks.gpu.parts import PARTS  # noqa: E402


@pytest.mark.parametrize("name", PARTS)
def test_part(name):
    try:
        found = PARTS[name].run()
    except Skip as skip:
        pytest.skip(str(skip))
    missed = [str(goal) for goal in found.goals if not goal.met]
    assert not missed, missed
