"""The proof, at a run's first sync, that the engine holds the trainer's weights."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alp_megatron.errors import RunError
from alp_megatron.hf.tensors import HfTensors
from alp_megatron.weights.quantize.scheme import Scheme
from alp_megatron.weights.quantize.stream import quantized


def digest(tensor: Tensor) -> str:
    """Returns BLAKE2b-128 (hex) of the tensor's bytes in row-major order.

    Shape and dtype are not in it.
    """
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(raw.numpy(), digest_size=16).hexdigest()


class SyncError(RunError):
    """The rollout engine does not hold the trainer's weights. The message names the tensor."""


@dataclass
class Digests:
    """Collects fingerprints of the tensors, or codes and scales, that pass through `record`."""

    of: dict[str, str] = field(default_factory=dict)

    def record(self, stream: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in stream:
            self.of[name] = digest(tensor)
            yield name, tensor


def check_same_tensors(sent: dict[str, str], received: dict[str, str]) -> None:
    """Raise SyncError naming the first tensor whose received bytes are not those sent."""
    for name in sorted(sent.keys() | received.keys()):
        if sent.get(name) != received.get(name):
            raise SyncError(
                f"first weight sync: tensor {name} arrived at the rollout engine changed "
                f"(sent {sent.get(name)}, received {received.get(name)})"
            )


def check_against_checkpoint(sent: dict[str, str], base: HfTensors, dtype: torch.dtype) -> None:
    """Raise SyncError naming the first tensor that is not the base model's, cast to `dtype`.

    Before the first update the trainer's export must reproduce the model it was loaded from.
    """
    for name, fingerprint in sent.items():
        if digest(base.tensor(name).to(dtype)) != fingerprint:
            raise SyncError(
                f"first weight sync: tensor {name} as exported by the trainer differs from "
                f"{base.model_dir}, though nothing has been trained yet"
            )


def check_rounded_against_checkpoint(name: str, tensor: Tensor, base: HfTensors) -> None:
    """Raise SyncError where a tensor is not the base model's rounded to E4M3.

    Half a step is 2^-4 of a number at most; of the smallest 2^-10 in units of a scale that lets
    the largest be 448, or half of that where scales are powers of two. bfloat16 adds 2^-9.
    """
    original = base.tensor(name).float()
    limit = original.abs() * (2**-4 + 2**-8) + original.abs().amax() * (2**-9 / 448)
    if not ((tensor.float().cpu() - original).abs() <= limit).all():  # also of NaN
        raise SyncError(
            f"first weight sync: tensor {name} as exported by the trainer differs from "
            f"{base.model_dir} by more than FP8 rounds, though nothing has been trained yet"
        )


def check_codes_against_checkpoint(
    sent: dict[str, str],
    base: HfTensors,
    trained: torch.dtype,
    exported: torch.dtype,
    scheme: Scheme,
) -> None:
    """Raise SyncError naming the first codes or scales that are not the base model's.

    They are made a second time, of the weights on disk: cast to the trainer's dtype and then to
    that of the export, as the trainer's were.
    """
    weights = ((name, tensor.to(exported)) for name, tensor in base.stream(trained))
    for name, tensor in quantized(weights, scheme):
        if name in sent and sent[name] != digest(tensor):
            raise SyncError(
                f"first weight sync: tensor {name} as sent to the rollout engine is not "
                f"{base.model_dir} quantised to {scheme.quantization}, though nothing has "
                "been trained yet"
            )


def check_version(sampled: set[int], version: int) -> None:
    """Raise SyncError if samples were drawn under another version than the one just sent."""
    if sampled != {version}:
        raise SyncError(
            f"first weight sync: version {version} was sent, but the rollout engine samples under "
            f"version {', '.join(map(str, sorted(sampled - {version})))}"
        )


def check_logprobs(
    trainer: list[list[float]], engine: list[list[float]], limit: float
) -> dict[str, float]:
    """Compare log-probabilities of the same tokens; raise SyncError if their mean |difference|
    is beyond `limit` nats.

    The mean, not the largest: a token on a knife's edge can move by a nat and more when trained
    fp32 weights are rounded to the engine's dtype, while a wrong tensor moves all of them.

    Returns `mean_abs_diff`, `max_abs_diff` (nats) and `k3` = mean(e^l - l - 1), l = trainer -
    engine.
    """
    ours = torch.tensor([x for row in trainer for x in row], dtype=torch.float64)
    theirs = torch.tensor([x for row in engine for x in row], dtype=torch.float64)
    difference = ours - theirs
    mean = difference.abs().mean().item()
    if not mean <= limit:  # also when it is not a number
        raise SyncError(
            f"first weight sync: every tensor arrived intact, but the rollout engine's "
            f"log-probabilities differ from the trainer's by {mean:.3g} nats in the mean "
            f"(rollout.gate_mean_abs_diff={limit}): the two do not compute the same model"
        )
    return {
        "mean_abs_diff": mean,
        "max_abs_diff": difference.abs().max().item(),
        "k3": (difference.exp() - difference - 1).mean().item(),
    }
