"""Checks that a weight update is a whole checkpoint, and says which tensor spoils it."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from alp_megatron.hf.tensors import HfTensors, Shapes
from alp_megatron.rollout.engine import EngineError
from alp_megatron.rollout.settings import EngineSettings
from alp_megatron.weights.quantize.scheme import UNQUANTIZED, scheme_of
from alp_megatron.weights.verify import digest

# A tied output layer is the embedding again: a checkpoint may hold it, a stream need not.
TIED_HEAD = "lm_head.weight"


def expected_shapes(settings: EngineSettings) -> Shapes:
    """What an update must bring: the checkpoint's tensors, or the codes and scales for them."""
    shapes = HfTensors(settings.model_dir).shapes
    if settings.quantization == UNQUANTIZED:
        return shapes
    scheme = scheme_of(shapes, settings.quantization, tuple(settings.quantization_ignore))
    return scheme.stored_shapes(shapes)


class Receipt:
    """Watches the tensors of one weight update go by, in one stream or several.

    Args:
        expected: see `expected_shapes`.
        tied: the model's output layer is its embedding.

    Attributes:
        digests: name -> digest of each tensor as it was received, if they were asked for.
    """

    def __init__(self, expected: Shapes, tied: bool, with_digests: bool):
        self._expected = expected
        self._remaining = dict(expected)
        self._optional = {TIED_HEAD} if tied else set()
        self._with_digests = with_digests
        self.digests: dict[str, str] = {}

    def whole(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """`watch` and `check_whole`, where all comes in one stream."""
        yield from self.watch(tensors)
        self.check_whole()

    def watch(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Passes them through.

        Raises EngineError naming a tensor that is not expected, repeated or of another shape.
        """
        for name, tensor in tensors:
            if name not in self._expected:
                raise EngineError(f"weight update: the rollout model has no tensor {name}")
            if name not in self._remaining:
                raise EngineError(f"weight update: tensor {name} came twice")
            shape = self._remaining.pop(name)
            if shape != tuple(tensor.shape):
                raise EngineError(
                    f"weight update: tensor {name} has shape {tuple(tensor.shape)}, "
                    f"the rollout model's has {shape}"
                )
            if self._with_digests:
                self.digests[name] = digest(tensor)
            yield name, tensor

    def check_whole(self) -> None:
        """Raises EngineError naming what did not come: vLLM itself would keep the old weights."""
        missing = [name for name in self._remaining if name not in self._optional]
        if missing:
            raise EngineError(f"weight update: tensor {', '.join(missing)} did not come")
