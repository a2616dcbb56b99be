"""The agreement of ranks on the key, and the weight of the import."""

import subprocess
import sys
import tempfile

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from alp_megatron.errors import UserError
from alp_megatron.perturbation import NoiseKey, assert_keys_agree


def _agree(rank, store):
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    assert_keys_agree(NoiseKey(7, 1, 0))
    message = r"ranks \[0\] hold NoiseKey\(seed=7, step=1, update=0\), ranks \[1\] hold .*step=2"
    with pytest.raises(UserError, match=message):
        assert_keys_agree(NoiseKey(7, 1 + rank, 0), dist.group.WORLD)
    dist.destroy_process_group()


def test_ranks_prove_that_their_keys_agree():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_agree, (f"{folder}/store",), nprocs=2)


def test_import_is_light():
    code = (
        "import sys, alp_megatron.perturbation as p; "
        "print([m for m in ('megatron', 'numba', 'triton') if m in sys.modules]); "
        "p.nonsense"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
    assert "AttributeError" in result.stderr
