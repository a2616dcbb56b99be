"""The Megatron parameters of a model, where a checkpoint stores them, and what makes them."""

from dataclasses import dataclass

from alp_megatron.config.model_shape import ModelShape
from alp_megatron.weights.mapping import FAMILIES

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
        """For messages: the stored name with the layer and expert it is taken from."""
        place = "".join(f"[{i}]" for i in self.index)
        return self.keys[0] + place


def parameters_of(model_type: str, shape: ModelShape) -> list[Parameter]:
    """All parameters of the model: embedding, the layers by number, final norm, head."""
    expected = shape.tensor_shapes()
    rows: dict[tuple, list[str]] = {}
    for name, (layout, *hf_names) in FAMILIES[model_type].items():
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
    """Megatron's names in a checkpoint: those of Transformer Engine, where norms are fused.

    Before experts its layer specs disagree: Transformer Engine's has the norm by itself, the
    local one stores it as if a dense MLP followed. Such a norm is stored under both names.
    """
    fused = [n for n in names if n.endswith(_FUSED_NORM)]
    if names[0] == "pre_mlp_layernorm.weight" and not dense:
        fused = ["pre_mlp_layernorm.weight", f"mlp.linear_fc1.{_FUSED_NORM}"]
    stored = fused or names
    return [_LAYERS + n.replace(".local_experts.", ".experts.") for n in stored]


def extra_state_keys(parameters: list[Parameter]) -> list[str]:
    """Keys of the `_extra_state` objects that Megatron asks a checkpoint for.

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
