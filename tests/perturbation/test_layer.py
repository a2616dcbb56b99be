"""PerturbedTransformerLayer, in a training process: the CPU patches change torch globally."""

import pytest
import torch

from alp_megatron.config.schema import PerturbationConfig
from alp_megatron.perturbation import NoiseKey, NoiseRows, gaussian
from tests.support.layouts import config_for

KEY, ROWS, HIDDEN = NoiseKey(3, 1, 0), 12, 32


@pytest.mark.parametrize("check", ["noise_enters", "parameter_stays_fp32", "parameter_is_saved"])
def test_layer(workers, check):
    workers.run(f"{__name__}:{check}", config_for("no model"), 1)


def _layer(perturbation):
    from megatron.core import tensor_parallel

    from alp_megatron.model.specs import block_spec
    from alp_megatron.model.transformer_config import PolicyConfig
    from alp_megatron.perturbation import PerturbedTransformerLayer

    config = PolicyConfig(
        num_layers=4,
        hidden_size=HIDDEN,
        num_attention_heads=4,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        add_bias_linear=False,
        normalization="RMSNorm",
        perturbation=perturbation,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(1)  # the same weights at every call
    submodules = block_spec(config, 1).layer_specs[0].submodules
    return PerturbedTransformerLayer(config, submodules, layer_number=2)


def _run(layer, hidden, noise):
    from alp_megatron.model.attention import AttentionLayout
    from alp_megatron.model.policy import PackedParams

    layout = AttentionLayout.of([ROWS])
    params = PackedParams(qkv_format="sbhd", noise=noise, attention_layout=layout)
    return layer(hidden_states=hidden, attention_mask=None, packed_seq_params=params)[0]


def noise_enters(config, rank):
    hidden = torch.randn(ROWS, 1, HIDDEN)
    ids, positions = torch.full((ROWS,), 9), torch.arange(ROWS)

    def noise():
        return NoiseRows(KEY, ids, positions)

    plain = _run(_layer(None), hidden, None)
    layer = _layer(PerturbationConfig(sigma0=0.1))
    assert torch.equal(_run(layer, hidden, None), plain)
    # Megatron numbers layers from 1: layer_number 2 draws the noise of layer 1.
    noisy = hidden + 0.1 * gaussian(KEY, 1, ids, positions, HIDDEN).view_as(hidden)
    out = _run(layer, hidden, noise())
    assert not torch.equal(out, plain)
    assert torch.equal(out, _run(_layer(None), noisy, None))
    out.sum().backward()
    assert layer.log_sigma_scale.grad.abs() > 0
    for off in (
        None,
        PerturbationConfig(sigma0=0.0),
        PerturbationConfig(sigma0=0.1, layer_start=2),
        PerturbationConfig(sigma0=0.1, layer_end=1),
    ):
        assert torch.equal(_run(_layer(off), hidden, noise()), plain)


def parameter_stays_fp32(config, rank):
    """And stays what it is where a state has none."""
    layer = _layer(PerturbationConfig())
    with torch.no_grad():
        layer.log_sigma_scale.fill_(0.1234567)
    before = layer.log_sigma_scale
    layer.bfloat16()
    assert layer.log_sigma_scale is before and before.dtype == torch.float32
    assert before.item() == torch.tensor(0.1234567).item() and not before.sequence_parallel
    assert layer.self_attention.linear_proj.weight.dtype == torch.bfloat16
    state = layer.state_dict()
    del state["log_sigma_scale"]
    layer.load_state_dict(state)
    assert before.item() == torch.tensor(0.1234567).item()
    assert not _layer(PerturbationConfig(learnable=False)).log_sigma_scale.requires_grad


def parameter_is_saved(config, rank):
    sharded = _layer(PerturbationConfig()).sharded_state_dict(prefix="decoder.layers.1.")
    entry = sharded["decoder.layers.1.log_sigma_scale"]
    assert entry.global_shape == (1,) and entry.dtype == torch.float32
