"""Tensors through shared memory: the same bytes, within the bound, whatever their sizes."""

import hashlib
import os

import pytest
import torch

from alp_megatron.weights.transport import SharedBuffer, pack, unpack
from alp_megatron.weights.verify import digest


@pytest.fixture
def buffer():
    buffer = SharedBuffer.create(capacity=1024)
    yield buffer
    buffer.close()


def tensors():
    """Odd sizes, several dtypes, a scalar, a transpose, and one of many times the buffer."""
    torch.manual_seed(0)
    return {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "bytes": torch.randint(0, 256, (11,), dtype=torch.uint8),
        "transposed": torch.randn(16, 9).T,
        "large": torch.randn(33, 101),
        "exact": torch.randn(256),
        "last": torch.randn(1).half(),
    }


def test_what_arrives_is_what_was_sent(buffer):
    sent = tensors()
    received = dict(unpack(pack(sent.items(), buffer), buffer))
    assert list(received) == list(sent)
    for name, tensor in sent.items():
        assert received[name].dtype == tensor.dtype
        assert torch.equal(received[name], tensor)


def test_another_holder_of_the_descriptor_reads_the_same(buffer):
    other = SharedBuffer(os.dup(buffer.fd), buffer.capacity)
    sent = tensors()
    received = dict(unpack(pack(sent.items(), buffer), other))
    other.close()
    assert all(torch.equal(received[name], sent[name]) for name in sent)


def test_buckets_stay_within_the_buffer_and_split_only_what_is_larger(buffer):
    pieces = [piece for bucket in pack(tensors().items(), buffer) for piece in bucket]
    assert all(p.offset + p.count * p.dtype.itemsize <= buffer.capacity for p in pieces)
    split = {p.name for p in pieces if not (p.start == 0 and p.last)}
    assert split == {"large"}


def test_digest_is_of_the_bytes_in_row_major_order():
    tensor = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    raw = b"".join(i.to_bytes(4, "little") for i in range(6))
    assert digest(tensor) == hashlib.blake2b(raw, digest_size=16).hexdigest()
    assert digest(tensor.T) == digest(tensor.T.contiguous())
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(1.0 + 2**-23))


def test_a_closed_buffer_gives_its_descriptor_back():
    before = set(os.listdir("/proc/self/fd"))
    buffer = SharedBuffer.create(capacity=1024)
    dict(unpack(pack(tensors().items(), buffer), buffer))
    buffer.close()
    buffer.close()
    assert set(os.listdir("/proc/self/fd")) == before
