"""The Megatron parameters of a model, where a checkpoint stores them, and what makes them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from alp_megatron.hf.shape import ModelShape
from alp_megatron.hf.tensors import HfTensors
from alp_megatron.weights.mapping import FAMILIES, merge

_LAYERS = "decoder.layers."
_FUSED_NORM = "layer_norm_weight"
_EXTRA = "_extra_state/shard_"
_FIRST, _LAST = "embedding.", ("decoder.final_layernorm.", "output_layer.")


@dataclass(frozen=True)
class Parameter:
    """One parameter of one layer (and expert).

    Attributes:
        keys: names of the stored tensors that hold it; more than one only where Megatron's layer
            specs disagree about the name.
        index: its place on the stored tensors' leading axes: (), (layer,) or (layer, expert).
        stack: the sizes of these axes.
        layout: of `weights.mapping`.
        hf_names: the Hugging Face tensors that make it.
        hf_rows: their sizes along dimension 0.
        shape: of the whole parameter, without the leading axes and without vocabulary padding.
    """

    keys: tuple[str, ...]
    index: tuple[int, ...]
    stack: tuple[int, ...]
    layout: str
    hf_names: tuple[str, ...]
    hf_rows: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name for messages: the stored name with the layer and expert it is taken from."""
        place = "".join(f"[{i}]" for i in self.index)
        return self.keys[0] + place


def parameters_of(shape: ModelShape) -> list[Parameter]:
    """Returns all parameters of the model: embedding, the layers by number, final norm, head."""
    expected = shape.tensor_shapes()
    rows: dict[tuple, list[str]] = {}
    for name, (layout, *hf_names) in FAMILIES[shape.family.model_type].items():
        first = [n.format(i=0, e=0) for n in hf_names]
        if all(n in expected for n in first):
            rows.setdefault((layout, *hf_names), []).append(name)
    groups = {"first": [], "layers": [], "last": []}
    for (layout, *hf_names), names in rows.items():
        where = "first" if names[0].startswith(_FIRST) else "layers"
        where = "last" if names[0].startswith(_LAST) else where
        groups[where].append((layout, hf_names, names))
    layers = range(shape.num_hidden_layers)

    def made(where: str, layer: int | None):
        for layout, hf_names, names in groups[where]:
            yield from _of_row(layout, hf_names, names, layer, shape, expected)

    return [
        *made("first", None),
        *(parameter for layer in layers for parameter in made("layers", layer)),
        *made("last", None),
    ]


def _of_row(layout, hf_names, names, layer, shape, expected):
    experts = shape.experts.num_experts if shape.experts else 0
    stack = () if layer is None else (shape.num_hidden_layers,)
    of_experts = any("{e}" in name for name in hf_names)
    if of_experts:
        stack += (experts,)
    keys = names if layer is None else _stored_names(names, dense=experts == 0)
    for expert in range(experts) if of_experts else [None]:
        hf = tuple(n.format(i=layer, e=expert) for n in hf_names)
        shapes = [expected[n] for n in hf]
        yield Parameter(
            keys=tuple(keys),
            index=tuple(i for i in (layer, expert) if i is not None),
            stack=stack,
            layout=layout,
            hf_names=hf,
            hf_rows=tuple(s[0] for s in shapes),
            shape=(sum(s[0] for s in shapes), *shapes[0][1:]),
        )


def _stored_names(names: list[str], dense: bool) -> list[str]:
    """Returns Megatron's names in a checkpoint: those of Transformer Engine, where norms are fused.

    Before experts its layer specs disagree: Transformer Engine's has the norm by itself, the
    local one stores it as if a dense MLP followed. Such a norm is stored under both names.
    """
    fused = [n for n in names if n.endswith(_FUSED_NORM)]
    if names[0] == "pre_mlp_layernorm.weight" and not dense:
        fused = ["pre_mlp_layernorm.weight", f"mlp.linear_fc1.{_FUSED_NORM}"]
    stored = fused or names
    return [_LAYERS + n.replace(".local_experts.", ".experts.") for n in stored]


def extra_state_keys(parameters: list[Parameter]) -> list[str]:
    """Returns the keys of the `_extra_state` objects that Megatron asks a checkpoint for.

    Its layers keep FP8 statistics in them; without FP8 they are empty. Which modules ask depends
    on the layer spec, so each that owns a weight gets one, and core attention.
    """
    found = [f"decoder.final_layernorm.{_EXTRA}0_1"]
    modules = {
        (key.rsplit(".", 1)[0], parameter.index, parameter.stack): None
        for parameter in parameters
        if parameter.index
        for key in parameter.keys
    }
    attention = _LAYERS + "self_attention.core_attention"
    modules |= {(attention, index[:1], stack[:1]): None for _, index, stack in modules}
    for module, index, stack in modules:
        found.append(f"{module}.{_EXTRA}{'.'.join(map(str, index))}_{'.'.join(map(str, stack))}")
    return found


Box = tuple[tuple[int, ...], tuple[int, ...]]

# Layouts whose whole parameter is the Hugging Face tensors' rows one after another.
BY_ROWS = ("replicated", "column", "vocab", "gate_up")


def cuts(parameter: Parameter, tensor_parallel: int, max_rows: int) -> list[Box]:
    """Cuts the parameter as a checkpoint stores it: into the parts of the tensor-parallel ranks.

    Layouts that go by rows are cut further where a part has more than `max_rows`. An expert is
    never split over tensor parallelism.
    """
    if len(parameter.index) > 1 or parameter.layout == "replicated":
        tensor_parallel = 1
    rows, *rest = parameter.shape
    if parameter.layout == "row":
        return [((0, low), (rows, n)) for low, n in _parts(rest[0], tensor_parallel)]
    zeros, boxes, first = (0,) * len(rest), [], 0
    for block in parameter.hf_rows if parameter.layout == "gate_up" else (rows,):
        count = tensor_parallel
        if parameter.layout in BY_ROWS:
            count *= -(-block // (max_rows * count))
        boxes += [((first + low, *zeros), (n, *rest)) for low, n in _parts(block, count)]
        first += block
    return boxes


def _parts(length: int, count: int) -> list[tuple[int, int]]:
    """Returns (start, length) of equal parts; the last ones may be shorter or absent."""
    step = -(-length // count)
    return [(low, min(step, length - low)) for low in range(0, length, step)]


def overlap(one: Box, other: Box) -> Box | None:
    """Returns what two boxes share."""
    low = [max(a, b) for a, b in zip(one[0], other[0], strict=True)]
    ends = [
        min(a + n, b + m) for a, n, b, m in zip(one[0], one[1], other[0], other[1], strict=True)
    ]
    sizes = tuple(end - start for start, end in zip(low, ends, strict=True))
    return (tuple(low), sizes) if all(n > 0 for n in sizes) else None


def hf_rows(parameter: Parameter, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
    """Finds rows start to stop of a BY_ROWS parameter as rows of Hugging Face tensors, in order.

    Yields (name, first row, one past the last row).
    """
    first = 0
    for name, rows in zip(parameter.hf_names, parameter.hf_rows, strict=True):
        low, high = max(start, first), min(stop, first + rows)
        if low < high:
            yield name, low - first, high - first
        first += rows


class MergedParameters:
    """Merges boxes of Megatron parameters from Hugging Face tensors as they are asked for.

    What is read and holds NaN or infinity raises UserError.
    """

    def __init__(self, tensors: HfTensors, query_groups: int):
        self._tensors = tensors
        self._query_groups = query_groups
        self._last: tuple[Parameter, Tensor] | None = None

    def box(self, parameter: Parameter, box: Box) -> Tensor:
        """Returns a part of a parameter, contiguous.

        The boxes of a parameter are best asked for in a row.
        """
        (first, *_), (count, *_) = box
        if parameter.layout in BY_ROWS:
            self._last = None
            parts = list(self._rows(parameter, first, first + count))
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        if self._last is None or self._last[0] != parameter:
            self._last = None  # before the next one is read
            parts = [self._whole(name) for name in parameter.hf_names]
            self._last = parameter, merge(parameter.layout, parts, self._query_groups)
        slices = tuple(slice(o, o + n) for o, n in zip(*box, strict=True))
        return self._last[1][slices].contiguous()

    def _rows(self, parameter: Parameter, start: int, stop: int) -> Iterator[Tensor]:
        for name, low, high in hf_rows(parameter, start, stop):
            rows = self._tensors.rows(name, low, high)
            self._tensors.check_finite(name, rows)
            yield rows

    def _whole(self, name: str) -> Tensor:
        tensor = self._tensors.tensor(name)
        self._tensors.check_finite(name, tensor)
        return tensor
