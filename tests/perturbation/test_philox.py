"""The plain reference: known answers, distinct counters, distinct keys."""

import itertools

import numpy as np
import pytest

from alp_megatron.perturbation import NoiseKey
from alp_megatron.perturbation.philox import MAX_CHANNELS, MAX_LAYERS, counters, philox4x32

# From Random123's kat_vectors file: philox4x32, 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize("counter, key, result", KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    counter, key, result = ([int(w, 16) for w in text.split()] for text in (counter, key, result))
    assert philox4x32(np.array(counter, dtype=np.uint32), tuple(key)).tolist() == result


def test_no_two_names_share_a_counter():
    layers = [0, 1, 2, MAX_LAYERS - 1]
    samples = np.array([0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1])
    positions = np.array([0, 1, 2, 2**20, 2**31, 2**32 - 1])
    blocks = np.array([0, 1, 2, 255, MAX_CHANNELS // 4 - 1])
    pairs = np.array(list(itertools.product(samples, positions)))
    made = [counters(layer, pairs[:, 0], pairs[:, 1], blocks).reshape(-1, 4) for layer in layers]
    made = np.concatenate(made)
    assert len(np.unique(made, axis=0)) == len(made) == 4 * 8 * 6 * 5


def test_keys_do_not_collide():
    keys = [NoiseKey(*k) for k in itertools.product((0, 1, 2**62), range(30), range(30))]
    assert len({key.words() for key in keys}) == len(keys)
    assert all(0 <= word < 2**32 for key in keys for word in key.words())


@pytest.mark.parametrize(
    "fields, name",
    [
        ((-1, 0, 0), "seed"),
        ((2**63, 0, 0), "seed"),
        ((0, 2**32, 0), "step"),
        ((0, 0, -1), "update"),
        ((0, 1.0, 0), "step"),
        ((True, 0, 0), "seed"),
    ],
)
def test_bad_keys_are_refused(fields, name):
    with pytest.raises(ValueError, match=f"NoiseKey.{name}"):
        NoiseKey(*fields)
