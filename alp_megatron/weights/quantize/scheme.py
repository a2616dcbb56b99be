"""Which tensors a quantised rollout engine holds in codes, and under which names and shapes.

Needs names and shapes alone, so that the configuration can be checked before anything is loaded.
"""

import re
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.hf.tensors import HfTensors, Shapes

UNQUANTIZED = "none"
BLOCK = 128  # rows and columns of an fp8 block
GROUPS = (128, 64, 32)  # int4 group sizes of vLLM's kernels, from the smallest file to the finest
PER_WORD = 8  # int4 codes in an int32

# The linear layers of a decoder; embeddings, norms, the router (`mlp.gate`) and the output layer
# are not among them.
_LINEAR = re.compile(r"model\.layers\.\d+\..*_proj(_with_mqa)?\.weight")


def is_linear(name: str) -> bool:
    """Returns whether a checkpoint's tensor is the weight of a linear layer of the decoder."""
    return _LINEAR.fullmatch(name) is not None


# What vLLM runs as one matrix, stacked in this order: the parts must be quantised alike.
_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)


@dataclass(frozen=True)
class Scheme:
    """A format and the weights that it applies to.

    Attributes:
        quantization: int8, fp8, fp8_block or int4.
        groups: name of each quantised weight -> its int4 group size, 0 for the other formats.
        unfit: name of each linear weight that the format or vLLM's kernels for it cannot hold
            -> why; these stay as they are.
        unquantized: every other two-dimensional weight.
    """

    quantization: str
    groups: dict[str, int]
    unfit: dict[str, str]
    unquantized: tuple[str, ...]

    def stored(self, name: str, shape: tuple[int, ...]) -> Shapes:
        """Names and shapes of what stands for a checkpoint's tensor in the quantised stream."""
        if name not in self.groups:
            return {name: shape}
        n, k = shape
        if self.quantization == "int4":
            return {
                f"{name}_shape": (2,),
                f"{name}_packed": (n, k // PER_WORD),
                f"{name}_scale": (n, k // self.groups[name]),
            }
        blocks = (-(-n // BLOCK), -(-k // BLOCK))
        scales = blocks if self.quantization == "fp8_block" else (n, 1)
        return {name: shape, f"{name}_scale": scales}

    def stored_shapes(self, shapes: Shapes) -> Shapes:
        """`stored` of a whole checkpoint."""
        return {k: v for name, shape in shapes.items() for k, v in self.stored(name, shape).items()}


def rollout_scheme(config: Config) -> Scheme | None:
    """Returns the scheme that a configuration asks for; None for an unquantised engine."""
    rollout = config.rollout
    if rollout.quantization == UNQUANTIZED:
        return None
    ignore = tuple(rollout.quantization_ignore)
    return scheme_of_model(config.model.path, rollout.quantization, ignore)


def scheme_of_model(model_dir: str | Path, quantization: str, ignore: tuple[str, ...]) -> Scheme:
    """Returns the scheme of a Hugging Face directory, from the headers of its weights."""
    return scheme_of(HfTensors(model_dir).shapes, quantization, ignore)


def scheme_of(shapes: Shapes, quantization: str, ignore: tuple[str, ...]) -> Scheme:
    """Finds every linear weight but those that `ignore` names or that the format cannot hold.

    Args:
        shapes: of the unquantised checkpoint.
        ignore: patterns of module names with * and ?, e.g. `model.layers.0.*` or `*.o_proj`.

    A weight that the format cannot hold is left out; see Scheme.unfit.

    Raises UserError for a pattern that names no linear layer, for one that splits what vLLM runs
    as one matrix, and where nothing is left to quantise.
    """
    linear = [name for name in shapes if is_linear(name)]
    ignored = _ignored(linear, ignore)
    groups: dict[str, int] = {}
    unfit: dict[str, str] = {}
    for name in linear:
        if name in ignored:
            continue
        reason, group = _fit(name, shapes, quantization)
        if reason:
            unfit[name] = reason
        else:
            groups[name] = group
    if not groups:
        why = f" ({next(iter(unfit.values()))})" if unfit else ""
        raise UserError(
            f"rollout.quantization={quantization} finds no layer to quantise{why}: use another "
            "format, or 'none'."
        )
    other = (n for n, s in shapes.items() if n not in groups and len(s) == 2)
    return Scheme(quantization, groups, unfit, tuple(other))


def _ignored(linear: list[str], patterns: tuple[str, ...]) -> set[str]:
    modules = {name: name.removesuffix(".weight") for name in linear}
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name, module in modules.items() if fnmatchcase(module, pattern)}
        if not matched:
            raise UserError(
                f"rollout.quantization_ignore: {pattern!r} matches no linear layer: use names such "
                f"as {next(iter(modules.values()), 'model.layers.0.mlp.down_proj')}, with * for "
                "any text."
            )
        found |= matched
    for name in linear:
        parts = _fused_with(name)
        if name in found and not found.issuperset(p for p in parts if p in modules):
            shown = ", ".join(p.split(".")[-2] for p in parts)
            raise UserError(
                f"rollout.quantization_ignore names {modules[name]}, but vLLM runs {shown} as one "
                "matrix: name all of them or none."
            )
    return found


def _fit(name: str, shapes: Shapes, quantization: str) -> tuple[str, int]:
    """Returns why the format cannot hold the weight, or '', and int4's group size."""
    if quantization == "int4":
        k = shapes[name][1]
        group = next((g for g in GROUPS if k % g == 0), 0)
        return ("" if group else f"{k} input channels are no multiple of {GROUPS[-1]}"), group
    if quantization == "fp8_block":
        for part in _fused_with(name)[:-1]:  # a ragged last part has its edge blocks at the end
            rows = shapes[part][0] if part in shapes else 0
            if rows % BLOCK:
                return f"{part} has {rows} rows, so a block of {BLOCK} would span two tensors", 0
    return "", 0


def _fused_with(name: str) -> tuple[str, ...]:
    """Returns the weights of the matrix that vLLM makes of this one, itself among them, in their
    order.
    """
    parent, module, _ = name.rsplit(".", 2)
    group = next((g for g in _FUSED if module in g), (module,))
    return tuple(f"{parent}.{part}.weight" for part in group)


_FORMATS = {
    "int8": "int-quantized",
    "fp8": "float-quantized",
    "fp8_block": "float-quantized",
    "int4": "pack-quantized",
}


def quantization_config(scheme: Scheme) -> dict[str, Any]:
    """Returns what vLLM and compressed-tensors must know to read the codes; see QuantizationArgs
    there.
    """
    ignore = [*scheme.unquantized, "lm_head.weight"]  # a tied one is not among the tensors
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMATS[scheme.quantization],
        "quantization_status": "compressed",
        "config_groups": _config_groups(scheme),
        "ignore": sorted({name.removesuffix(".weight") for name in ignore}),
    }


def _config_groups(scheme: Scheme) -> dict[str, Any]:
    """One for each int4 group size; the most frequent is said of all linear layers, so that it
    reaches those which vLLM makes of several."""
    by_size = Counter(scheme.groups.values())
    (usual, _), *others = by_size.most_common()
    targets = {usual: ["Linear"]}
    for size, _ in others:
        names = [name for name, group in scheme.groups.items() if group == size]
        targets[size] = [name.removesuffix(".weight") for name in names]
    return {
        f"group_{index}": {"targets": names, **_arguments(scheme.quantization, size)}
        for index, (size, names) in enumerate(targets.items())
    }


def _arguments(quantization: str, group: int) -> dict[str, Any]:
    static = {"symmetric": True, "dynamic": False}
    dynamic = {"symmetric": True, "dynamic": True}
    if quantization == "int4":
        weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group}
        return {"weights": weights | static}
    numbers = {"num_bits": 8, "type": "int" if quantization == "int8" else "float"}
    if quantization == "fp8_block":
        weights = numbers | static | {"strategy": "block", "block_structure": [BLOCK, BLOCK]}
        activations = numbers | dynamic | {"strategy": "group", "group_size": BLOCK}
    else:
        weights = numbers | static | {"strategy": "channel"}
        activations = numbers | dynamic | {"strategy": "token"}
    return {"weights": weights, "input_activations": activations}
