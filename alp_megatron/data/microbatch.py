"""Packs several sequences in one row of tokens: a micro-batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alp_megatron.metrics.counts import Counts
from alp_megatron.runtime.device import on_device

PAD_SAMPLE_ID = -1


@dataclass
class Sequence:
    """Holds the token ids of one sample, and which of them are to be predicted.

    Attributes:
        sample_id: addresses the sample's noise.
        token_ids: prompt and response, length n.
        first_predicted: index of the first token whose log-probability is wanted (>= 1).
    """

    sample_id: int
    token_ids: list[int]
    first_predicted: int


@dataclass
class MicroBatch:
    """Holds sequences laid one after another; every tensor is int64.

    Attributes:
        tokens, positions, sample_ids: [T]. `sample_ids` is -1 on padding.
        segment_lengths: lengths of the rows' segments, padding included; they sum to T.
        predict_rows: [n] rows of T whose next token is scored, sample after sample.
        targets: [n] the tokens they predict.
        sequence_index: [n] which sequence of the micro-batch each belongs to.
        sequence_sample_ids: the sample ids of the sequences, in order.
        counts: of what its layers do; its tokens and padding are counted when it is packed.
    """

    tokens: Tensor
    positions: Tensor
    sample_ids: Tensor
    segment_lengths: list[int]
    predict_rows: Tensor
    targets: Tensor
    sequence_index: Tensor
    sequence_sample_ids: list[int]
    counts: Counts


def row_length(sequences: list[Sequence], packing: bool) -> int:
    """Returns the tokens of a row that holds these sequences, before it is padded at its end."""
    lengths = [len(s.token_ids) for s in sequences]
    return sum(lengths) if packing else len(lengths) * max(lengths, default=0)


def pack(
    sequences: list[Sequence], *, packing: bool, total_length: int, device: torch.device
) -> MicroBatch:
    """Lays sequences in one row of `total_length` tokens.

    With `packing` they lie back to back; otherwise each is padded to the longest of them.
    """
    longest = max((len(s.token_ids) for s in sequences), default=0)
    tokens, positions, sample_ids, lengths = [], [], [], []
    rows, targets, sequence_index = [], [], []

    def pad_by(n: int) -> None:
        tokens.extend([0] * n)
        sample_ids.extend([PAD_SAMPLE_ID] * n)

    for index, sequence in enumerate(sequences):
        start, n = len(tokens), len(sequence.token_ids)
        length = n if packing else longest
        tokens += sequence.token_ids
        sample_ids += [sequence.sample_id] * n
        pad_by(length - n)
        positions += range(length)
        lengths.append(length)
        rows += range(start + sequence.first_predicted - 1, start + n - 1)
        targets += sequence.token_ids[sequence.first_predicted :]
        sequence_index += [index] * (n - sequence.first_predicted)
    tail = total_length - len(tokens)
    assert tail >= 0
    if tail:
        pad_by(tail)
        positions += range(tail)
        lengths.append(tail)

    def tensor(values):
        return on_device(values, torch.int64, device)

    counts = Counts(device)
    counts.add("tokens", len(tokens))
    counts.add("padding", sample_ids.count(PAD_SAMPLE_ID))
    return MicroBatch(
        tensor(tokens),
        tensor(positions),
        tensor(sample_ids),
        lengths,
        tensor(rows),
        tensor(targets),
        tensor(sequence_index),
        [s.sample_id for s in sequences],
        counts,
    )
