"""Makes gradient buffers, the optimizer with its sigma group, and its schedule."""

import math

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    ParamGroupOverride,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from alp_megatron.config.schema import Config
from alp_megatron.runtime.mesh import from_every_rank
from alp_megatron.weights.mapping import PRIVATE_SUFFIX


def wrap(chunks: list, config: Config) -> list[DistributedDataParallel]:
    """Puts gradient buffers around this rank's chunks; gradients are summed in fp32."""
    policy_config = chunks[0].config
    _mark_experts(chunks)
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=config.trainer.use_distributed_optimizer,
        fp8_param_gather=policy_config.fp8_param,
    )
    if policy_config.bf16:
        chunks = [Float16Module(policy_config, chunk) for chunk in chunks]
    return [
        DistributedDataParallel(policy_config, ddp_config, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]


def _mark_experts(chunks: list) -> None:
    """Marks experts, each whole on all its ranks, also on those that TP splits other weights over:
    its gradient is the sum over them. Megatron marks experts so only where there is EP."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if ".experts." in name:
                parameter.allreduce = False


def build_optimizer(
    config: Config, model: list[DistributedDataParallel]
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """Builds AdamW with constant learning rates after a linear warm-up.

    The sigmas have their own group: `perturbation.perturb_lr`, no weight decay (which would
    pull log sigma towards its start, not towards no noise).
    """
    trainer = config.trainer
    settings = OptimizerConfig(
        optimizer="adam",
        lr=trainer.lr,
        min_lr=trainer.lr,
        weight_decay=trainer.weight_decay,
        adam_beta1=trainer.adam_beta1,
        adam_beta2=trainer.adam_beta2,
        adam_eps=trainer.adam_eps,
        clip_grad=trainer.clip_grad,
        bf16=model[0].config.bf16,
        fp8_recipe=model[0].config.fp8_recipe if model[0].config.fp8 else None,
        params_dtype=model[0].config.params_dtype,
        use_distributed_optimizer=trainer.use_distributed_optimizer,
    )
    sigma_lr = config.perturbation.perturb_lr
    overrides = get_standard_config_overrides(settings)
    overrides[ParamKey(name=f"*{PRIVATE_SUFFIX}")] = ParamGroupOverride(
        max_lr=sigma_lr,
        min_lr=sigma_lr,
        wd_mult=0.0,
        # A checkpoint tells groups apart by this mark: without it the sigmas would resume with
        # the settings of the norms and biases, which have no weight decay either.
        is_decoupled_lr=True,
    )
    optimizer = get_megatron_optimizer(
        settings,
        model,
        config_overrides=overrides,
        use_gloo_process_groups=torch.cuda.is_available(),
    )
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=trainer.lr,
        min_lr=trainer.lr,
        lr_warmup_steps=trainer.lr_warmup_steps,
        lr_decay_steps=trainer.lr_warmup_steps + 1,
        lr_decay_style="constant",
        start_wd=trainer.weight_decay,
        end_wd=trainer.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )
    return optimizer, scheduler


def chained(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """Returns the optimizers it is made of: experts have one of their own."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def step_if_finite(optimizer: MegatronOptimizer) -> float:
    """Clips and steps, unless the global gradient norm is not finite. Returns the norm.

    Megatron's own `step` tests for this only under loss scaling.
    """
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    if math.isfinite(norm):
        for part in chained(optimizer):
            if part.config.clip_grad > 0:
                clip_grad_by_total_norm_fp32(part.get_parameters(), part.config.clip_grad, norm)
        optimizer.step_with_ready_grads()
    return norm


def log_scales(chunks: list) -> dict[int, Tensor | None]:
    """Copies s_l of this rank's layers, by number from 0; None where no noise reaches a layer.

    Waits neither for other ranks nor for the device: it is called after every update.
    """
    return {
        layer.layer_number - 1: layer.log_sigma_scale.detach().clone() if layer.perturbs() else None
        for chunk in chunks
        for layer in chunk.decoder.layers
    }


def sigmas(after_updates: list[dict[int, Tensor | None]], sigma0: float) -> list[list[float]]:
    """Returns sigma_l = sigma0 * exp(s_l) of every layer in order, 0 where None, for each of
    several `log_scales`. Collective: one exchange for all of them."""
    mine = [
        {
            number: 0.0 if scale is None else sigma0 * math.exp(scale.item())
            for number, scale in scales.items()
        }
        for scales in after_updates
    ]
    stages = from_every_rank(mine, parallel_state.get_pipeline_model_parallel_group())
    merged = [
        {n: s for stage in of_stages for n, s in stage.items()}
        for of_stages in zip(*stages, strict=True)
    ]
    return [[everywhere[number] for number in sorted(everywhere)] for everywhere in merged]
