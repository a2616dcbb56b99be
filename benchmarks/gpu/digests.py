"""Codes and scales that a GPU makes, beside those that a CPU makes of the same weights."""

import torch

from benchmarks.gpu.part import Found, Goal

FORMATS = ("int8", "fp8", "fp8_block", "int4")


def codes_agree() -> Found:
    """The bytes of every format's codes and scales, of bf16 and fp32 weights: the first sync
    compares codes made on the trainer's device with those made on a CPU of the checkpoint."""
    from alp_megatron.weights.quantize.scheme import scheme_of
    from alp_megatron.weights.quantize.stream import quantized
    from alp_megatron.weights.verify import digest

    figures, goals = {}, []
    for dtype in (torch.bfloat16, torch.float32):
        weights = awkward_weights(dtype)
        for name in FORMATS:
            scheme = scheme_of({n: tuple(t.shape) for n, t in weights.items()}, name, ())
            on_gpu = ((n, t.cuda()) for n, t in weights.items())
            cpu = {n: digest(t) for n, t in quantized(weights.items(), scheme)}
            gpu = {n: digest(t) for n, t in quantized(on_gpu, scheme)}
            other = [n for n in cpu if cpu[n] != gpu.get(n)]
            key = f"{name}, {str(dtype).removeprefix('torch.')}"
            figures[key] = {"tensors": len(cpu), "other": other}
            goals.append(Goal(f"{key}: tensors that differ", len(other), at_most=0))
    return Found(figures, goals)


def awkward_weights(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Normal, tiny, huge and partly zero matrices, some with edge blocks that are not full."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for layer, (rows, columns, scale) in enumerate(
        [(384, 512, 0.02), (256, 1184, 1e-30), (640, 128, 1e30), (1024, 896, 1.0), (256, 256, 3.0)]
    ):
        weight = torch.randn(rows, columns, generator=generator) * scale
        if layer == 4:
            weight[::3] = 0
            weight[1] = weight[1].round()  # ties
        found[f"model.layers.{layer}.mlp.down_proj.weight"] = weight.to(dtype)
    return found
