"""One FP8 linear layer of Transformer Engine against the emulation, operand by operand."""

import torch

from benchmarks.gpu.part import Found, Goal, Skip, need


def fp8_products() -> Found:
    """y = x w^T, dx and dw of `te.Linear` under each recipe against the emulated recipe's.

    Both round the same bf16 operands; what is left is how tensor cores accumulate and the result's
    rounding to bf16, 2^-9 of a number. The delayed recipe has a scale of 1 in its first pass; in a
    second one on the same operands its scales are tensorwise's.
    """
    need("transformer_engine")
    from transformer_engine.common import recipe as recipes
    from transformer_engine.pytorch import Linear, autocast

    from alp_megatron.check.fp8 import unsupported

    known = {
        "delayed": recipes.DelayedScaling,
        "tensorwise": recipes.Float8CurrentScaling,
        "blockwise": recipes.Float8BlockScaling,
        "mxfp8": recipes.MXFP8BlockScaling,
    }
    capability, cuda = torch.cuda.get_device_capability(), torch.version.cuda or "0"
    able = [name for name in known if unsupported(name, capability, cuda) is None]
    if not able:
        raise Skip("no recipe runs on this device")
    generator = torch.Generator("cuda").manual_seed(0)
    x, w, g = (
        torch.randn(*shape, device="cuda", generator=generator).bfloat16()
        for shape in ((256, 512), (384, 512), (256, 384))
    )
    figures, goals = {}, []
    for name in able:
        layer = Linear(512, 384, bias=False, params_dtype=torch.bfloat16)
        with torch.no_grad():
            layer.weight.copy_(w)
        fp8 = known[name](fp8_format=recipes.Format.HYBRID)
        for _ in range(2):
            inputs, layer.weight.grad = x.clone().requires_grad_(), None
            with autocast(enabled=True, recipe=fp8):
                y = layer(inputs)
            y.backward(g)
        theirs = dict(y=y.detach(), dx=inputs.grad, dw=layer.weight.grad)
        ours = emulated_products(name, x.float(), w.float(), g.float())
        errors = {
            key: float((theirs[key].float() - ours[key]).norm() / ours[key].norm()) for key in ours
        }
        figures[name] = errors
        goals.append(Goal(f"{name}: largest relative error", max(errors.values()), at_most=0.01))
    return Found(figures, goals)


def emulated_products(name: str, x, w, g) -> dict[str, torch.Tensor]:
    """y, dx and dw of fp32 matrices in E4M3 with E5M2 gradients."""
    from alp_megatron.fp8.recipes import AmaxMeter, Fp8Pass, blockwise, mxfp8
    from alp_megatron.fp8.rounding import E4M3, E5M2, float32_scale, round_trip

    if name in ("delayed", "tensorwise"):
        kinds = ((x, E4M3), (w, E4M3), (g, E5M2))
        x, w, g = (round_trip(t, float32_scale(t.abs().amax(), k), k) for t, k in kinds)
        return dict(y=x @ w.t(), dx=g @ w, dw=g.t() @ x)
    recipe = {"blockwise": blockwise, "mxfp8": mxfp8}[name](E5M2, AmaxMeter())
    run = Fp8Pass(torch.ones(len(x), 1, dtype=torch.bool, device=x.device), records=False)
    (qx, qw), scales = recipe.product(x, w, run)
    (g_x, w_x), (g_w, x_w) = recipe.gradients(g, x, w, scales, run)
    return dict(y=qx @ qw.t(), dx=g_x @ w_x, dw=g_w.t() @ x_w)
