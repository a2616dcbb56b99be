"""Adds the noise to hidden states or logits, and makes it again for the gradient of its scale."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alp_megatron.perturbation.noise import NoiseRows, kernels
from alp_megatron.perturbation.philox import MAX_LAYERS


def add_noise(
    hidden_states: Tensor,
    log_scale: Tensor,
    sigma0: float,
    noise: NoiseRows,
    layer: int,
    mode: Literal["absolute", "relative"] = "absolute",
) -> Tensor:
    """Returns h + sigma * z, sigma = sigma0 * exp(s_l), summed in fp32, rounded to h's dtype.

    hidden_states: fp32 or bf16 [..., h], its leading dimensions flattening to the noise's rows;
    log_scale: s_l, fp32 [1]; layer: global number, from 0. In relative mode sigma is further
    multiplied by the RMS of the row, which counts as a constant in the backward pass.

    Gradients: the identity for hidden_states; for s_l the sum over this rank's rows of
    grad * sigma * z, accumulated in fp64. Nothing of hidden_states is saved (relative: the RMS
    of each row), so the result may be changed in place. The noise's counts grow.
    """
    return _AddNoise.apply(hidden_states, log_scale, sigma0, noise, layer, mode)


class _AddNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, log_scale, sigma0, noise, layer, mode):
        h = hidden_states.shape[-1]
        rows = hidden_states.reshape(-1, h)
        assert len(rows) == len(noise.sample_ids), "noise of another micro-batch or rank"
        scale = sigma0 * log_scale.exp()
        if mode == "relative":
            norm = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
            scale = scale * (norm / h**0.5)
        ctx.save_for_backward(scale)  # [1] or [rows]
        ctx.noise, ctx.layer = noise, layer
        # Allocated in the final shape: Megatron wants tensors that are not views.
        out = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
        kernels(rows.device).add(
            noise.key_words,
            layer,
            noise.sample_ids,
            noise.positions,
            rows,
            scale.expand(len(rows)),
            out.view(-1, h),
            noise.counts["noise_changed"],
        )
        noise.counts["noise_total"].add_(noise.rows, alpha=h)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_scale = None
        if ctx.needs_input_grad[1]:
            (scale,) = ctx.saved_tensors
            noise, rows = ctx.noise, grad.reshape(-1, grad.shape[-1])
            dots = kernels(rows.device).dot(
                noise.key_words, ctx.layer, noise.sample_ids, noise.positions, rows
            )
            grad_scale = (scale.double() * dots).sum().float().view(1)
        return grad, grad_scale, None, None, None, None


LOGITS_LAYER = MAX_LAYERS - 1  # in the noise's address: no decoder layer has this number


@dataclass(frozen=True, eq=False)
class LogitsNoise:
    """Adds sigma * z to the logits of rows whose next token is scored, as all noise is made.

    The channel is the token id in the whole vocabulary, so that every vocabulary shard draws its
    own part of the same noise. sigma is fixed: nothing learns it.

    Attributes:
        key_words: int64 [2], of the micro-batch's noise.
        sample_ids, positions: int64 [n], of the predicting rows.
    """

    key_words: Tensor
    sigma: float
    sample_ids: Tensor
    positions: Tensor

    def add_to(self, logits: Tensor, rows: slice, first_token: int) -> None:
        """Adds to fp32 [rows, v] in place; column 0 is the token `first_token`."""
        noise = torch.empty_like(logits)
        kernels(logits.device).fill(
            self.key_words,
            LOGITS_LAYER,
            self.sample_ids[rows],
            self.positions[rows],
            first_token,
            noise,
        )
        logits.add_(noise, alpha=self.sigma)
