"""Noise on the logits is the same bits however the vocabulary is cut."""

import pytest
import torch

from alp_megatron.perturbation import NoiseKey, NoiseRows
from alp_megatron.perturbation.add_noise import LOGITS_LAYER, LogitsNoise
from alp_megatron.perturbation.philox import MAX_LAYERS

IDS, POSITIONS = torch.tensor([5, 5, 9, 2**40]), torch.tensor([0, 1, 1, 700])
NOISE = LogitsNoise(NoiseRows(NoiseKey(7, 3, 1), IDS, POSITIONS).key_words, 0.5, IDS, POSITIONS)


def drawn(first, last, rows=slice(None)):
    logits = torch.zeros(len(IDS[rows]), last - first)
    NOISE.add_to(logits, rows, first)
    return logits


@pytest.mark.parametrize("cuts", [[0, 50, 100], [0, 33, 66, 100], [0, 1, 2, 99, 100]])
def test_shards_draw_the_parts_of_one_noise(cuts):
    whole = drawn(0, 100)
    parts = [drawn(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(torch.cat([drawn(0, 100, slice(0, 3)), drawn(0, 100, slice(3, 4))]), whole)
    assert 0.4 < whole.std() < 0.6 and len(whole.unique()) == whole.numel()


def test_no_layer_shares_its_address():
    assert LOGITS_LAYER == MAX_LAYERS - 1
