"""A scheme as the `quantization_config` of config.json, in the form of compressed-tensors."""

from collections import Counter
from typing import Any

from alp_megatron.weights.quantize.scheme import BLOCK, Scheme

_FORMATS = {
    "int8": "int-quantized",
    "fp8": "float-quantized",
    "fp8_block": "float-quantized",
    "int4": "pack-quantized",
}


def quantization_config(scheme: Scheme) -> dict[str, Any]:
    """What vLLM and compressed-tensors must know to read the codes; see QuantizationArgs there."""
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
