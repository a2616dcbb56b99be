"""Adds noise to the input of Megatron's transformer layer."""

import torch
from megatron.core.fp8_utils import is_first_last_bf16_layer
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from alp_megatron.fp8.linear import count_surviving
from alp_megatron.fp8.recipes import fp8_pass
from alp_megatron.perturbation.add_noise import add_noise


class PerturbedTransformerLayer(TransformerLayer):
    """Owns s_l and perturbs its hidden states [s, b, h] when told to: a TransformerLayer.

    `config.perturbation` is our PerturbationConfig, or None for a layer without noise. The
    noise of a micro-batch comes as `packed_seq_params.noise`, NoiseRows; without it the
    layer is Megatron's own. Noise is added before the residual is taken, so it stays in the
    residual stream.

    Every layer has the parameter `log_sigma_scale`, also outside of the perturbed range, so
    that all layers shard alike. It stays fp32 when the model is cast, is saved like a norm's
    weight (replicated over TP), and may be absent from a state dict.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        settings = self.config.perturbation
        self.log_sigma_scale = nn.Parameter(
            torch.zeros(1, dtype=torch.float32, device=_device_of(self)),
            requires_grad=settings is not None and settings.learnable,
        )
        # Under sequence parallelism a rank sees part of the rows: Megatron sums over TP.
        self.log_sigma_scale.sequence_parallel = self.config.sequence_parallel

    def forward(self, hidden_states: Tensor, *args, packed_seq_params=None, **kwargs):
        """Runs `TransformerLayer.forward`; packed_seq_params, by keyword, may carry `noise`."""
        noise = getattr(packed_seq_params, "noise", None)
        if noise is not None and self.perturbs():
            settings, clean = self.config.perturbation, hidden_states
            hidden_states = add_noise(
                hidden_states,
                self.log_sigma_scale,
                settings.sigma0,
                noise,
                self.layer_number - 1,
                settings.sigma_mode,
            )
            if noise.counts.of_fp8 and self._computes_in_fp8():
                count_surviving(self, clean, hidden_states, noise)
        fp8 = getattr(packed_seq_params, "fp8", None) if self._computes_in_fp8() else None
        with fp8_pass(fp8), self._taking_fp32(hidden_states):
            return super().forward(
                hidden_states, *args, packed_seq_params=packed_seq_params, **kwargs
            )

    def perturbs(self) -> bool:
        """Returns whether noise is added to this layer's hidden states."""
        settings = self.config.perturbation
        if settings is None or settings.sigma0 == 0 or settings.target != "layers":
            return False
        end = self.config.num_layers if settings.layer_end is None else settings.layer_end
        return settings.layer_start <= self.layer_number - 1 < end

    def _taking_fp32(self, hidden_states: Tensor):
        """Transformer Engine refuses fp32 hidden states beside bf16 weights outside of autocast."""
        wider = hidden_states.is_cuda and self.config.fp32_residual_connection and self.config.bf16
        return torch.autocast("cuda", torch.bfloat16, enabled=wider)

    def _computes_in_fp8(self) -> bool:
        config = self.config
        if config.fp8 is None and config.emulated_fp8 is None:
            return False
        return not is_first_last_bf16_layer(config, self.layer_number - 1)

    def _apply(self, fn, recurse=True):
        """Keeps s_l in fp32 when the module is cast or moved (`.bfloat16()`, `.cuda()`).
        Rounding would lose its small updates."""
        scale = self.log_sigma_scale

        def keep_fp32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor is scale and moved.dtype != torch.float32:
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep_fp32, recurse)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, *rest):
        """Leaves s_l as it is where the checkpoint was made without perturbation."""
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)
        if prefix + "log_sigma_scale" in missing:
            missing.remove(prefix + "log_sigma_scale")


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
