import numpy as np
import pytest

from alp_megatron.errors import UserError
from alp_megatron.metrics.tokens import TokenRatios


def test_what_is_saved_is_loaded(tmp_path):
    ids = np.array([0, 0, 1])
    values = np.array([-0.5, -1.25, -3.0], np.float32)
    TokenRatios(ids, ids.astype(np.int32), values, values + 1, values + 2).save(tmp_path / "a.npz")
    loaded = TokenRatios.load(tmp_path / "a.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(loaded.sample_id, ids)
    np.testing.assert_array_equal(loaded.perturbed_logprobs, values + 2)
    assert loaded.rollout_logprobs.dtype == np.float32


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UserError, match=r"a\.npz is damaged"):
        TokenRatios.load(tmp_path / "a.npz")
