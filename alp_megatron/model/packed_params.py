"""What travels with a micro-batch through every layer, beside its hidden states."""

from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from alp_megatron.fp8.scope import Fp8Pass
from alp_megatron.model.attention import AttentionLayout
from alp_megatron.model.microbatch import MicroBatch
from alp_megatron.perturbation import NoisePlan, current_key


@dataclass
class PackedParams(PackedSeqParams):
    """Megatron hands this object to every layer and, by closure, to every recomputation.

    That is why the noise plan lives here and not on a module: 1F1B runs other micro-batches
    between a forward and its recomputation.
    """

    positions: Tensor | None = None
    sample_ids: Tensor | None = None
    attention_layout: AttentionLayout | None = None
    noise: NoisePlan | None = None
    fp8: Fp8Pass | None = None
    predict_rows: Tensor | None = None
    targets: Tensor | None = None
    temperature: float = 1.0


def packed_params(
    batch: MicroBatch, temperature: float, tp_rank: int, tp_size: int, sequence_parallel: bool
) -> PackedParams:
    """Prepare a micro-batch for the layers, with noise if called inside a `perturbation` scope."""
    params = PackedParams(
        positions=batch.positions,
        sample_ids=batch.sample_ids,
        predict_rows=batch.predict_rows,
        targets=batch.targets,
        temperature=temperature,
    )
    if batch.tokens.is_cuda:  # Transformer Engine's packed attention and rope
        ends = torch.tensor(batch.segment_lengths, device=batch.tokens.device).cumsum(0)
        cu_seqlens = torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)
        params.qkv_format = "thd"
        params.cu_seqlens_q = params.cu_seqlens_kv = cu_seqlens
        params.max_seqlen_q = params.max_seqlen_kv = max(batch.segment_lengths)
    else:
        params.qkv_format = "sbhd"
        params.attention_layout = AttentionLayout.of(batch.segment_lengths)
    key = current_key()
    if key is not None:
        rows = slice(None)
        if sequence_parallel:
            share = len(batch.tokens) // tp_size
            rows = slice(tp_rank * share, (tp_rank + 1) * share)
        params.noise = NoisePlan(
            key, batch.sample_ids[rows], batch.positions[rows], batch.samples_fp8
        )
        batch.noise_plans.append(params.noise)
    return params
