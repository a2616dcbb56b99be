"""Checks that a weight update is a whole checkpoint, and says which tensor spoils it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from alp_megatron.rollout.engine import EngineError

# A tied output layer is the embedding again: a checkpoint may hold it, a stream need not.
TIED_HEAD = "lm_head.weight"

Shapes = dict[str, tuple[int, ...]]


def checkpoint_shapes(model_dir: str) -> Shapes:
    """Name -> shape of every tensor in the directory's *.safetensors files."""
    shapes: Shapes = {}
    for path in sorted(Path(model_dir).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
    return shapes


def checked(
    tensors: Iterable[tuple[str, Tensor]], expected: Shapes, optional: frozenset[str]
) -> Iterator[tuple[str, Tensor]]:
    """Passes the tensors through.

    Raises EngineError naming a tensor that is not expected, repeated, of another shape or, at
    the end of the stream, missing. vLLM itself would keep the old weights where one is missing.
    """
    remaining = dict(expected)
    for name, tensor in tensors:
        if name not in expected:
            raise EngineError(f"weight update: the rollout model has no tensor {name}")
        if name not in remaining:
            raise EngineError(f"weight update: tensor {name} came twice")
        shape = remaining.pop(name)
        if shape != tuple(tensor.shape):
            raise EngineError(
                f"weight update: tensor {name} has shape {tuple(tensor.shape)}, "
                f"the rollout model's has {shape}"
            )
        yield name, tensor
    missing = [name for name in remaining if name not in optional]
    if missing:
        raise EngineError(f"weight update: tensor {', '.join(missing)} did not come")
