"""The logits-only ablation: the noise of the contract, drawn by every vocabulary shard."""

import pytest
import torch

from alp_megatron.config.schema import ObjectiveConfig
from alp_megatron.perturbation.add_noise import LOGITS_LAYER
from alp_megatron.perturbation.philox import reference_gaussian
from tests.support.layouts import (
    KEY,
    config_for,
    processes_of,
    some_sequences,
    some_trajectories,
)

JOBS = "tests.support.jobs:"
SIGMA = 0.3
ON_LOGITS = {"target": "logits", "learnable": False, "sigma0": SIGMA}


def reference_noise(sample_ids, positions, vocab_size=61) -> torch.Tensor:
    """sigma * z in float64, written down apart from the kernels; [n, vocab_size]."""
    z = reference_gaussian(
        KEY.words(), LOGITS_LAYER, sample_ids.numpy(), positions.numpy(), vocab_size
    )
    return SIGMA * torch.from_numpy(z)


@pytest.mark.parametrize("layout", [None, "tp2-sp", "tp2-pp2", "dp2"])
def test_logprobs_equal_transformers_plus_noise(workers, untied_model, layout):
    from transformers import AutoModelForCausalLM

    sequences = some_sequences()
    ours = workers.run(
        JOBS + "logprobs",
        config_for(untied_model, layout, perturbation=ON_LOGITS),
        processes_of(layout),
        sequences=sequences,
        key=KEY,
    )[0]
    model = AutoModelForCausalLM.from_pretrained(untied_model, dtype=torch.float32)
    for sample_id, tokens in enumerate(sequences):
        ids, positions = torch.tensor([tokens]), torch.arange(len(tokens) - 1)
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double()
        noisy = logits + reference_noise(torch.full_like(positions, sample_id), positions)
        expected = noisy.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(ours[sample_id].double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_gradients_of_the_head_are_autograds(workers, untied_model, tp):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, upstream = (
        torch.randn(*shape, generator=generator) for shape in ((12, 8), (64, 8), (12,))
    )
    targets = torch.randint(61, (12,), generator=generator)
    places = {"sample_ids": torch.arange(12) // 5 + 2**40, "positions": torch.arange(12) * 7}
    config = config_for(untied_model)
    config.model.tensor_model_parallel_size = config.runtime.world_size = tp
    ranks = workers.run(
        JOBS + "noisy_head",
        config,
        tp,
        hidden=hidden,
        weight=weight,
        targets=targets,
        noise_of={"sigma": SIGMA, **places},
        upstream=upstream,
    )
    h, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    noisy = (h @ w[:61].t() + reference_noise(**places)) / 0.7
    expected = noisy.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (expected * upstream.double()).sum().backward()
    for logprobs, _, _ in ranks:
        torch.testing.assert_close(logprobs.double(), expected.detach(), rtol=0, atol=1e-5)
    ours_h, ours_w = sum(r[1] for r in ranks), torch.cat([r[2] for r in ranks])
    torch.testing.assert_close(ours_h.double(), h.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours_w.double(), w.grad, rtol=1e-4, atol=1e-5)


def test_a_step_with_noise_on_the_logits_alone(workers, tied_model):
    trainer = {"lr": 1e-3, "adam_eps": 1e-3}
    alone, split = (
        workers.run(
            JOBS + "step_records",
            config_for(tied_model, layout, perturbation=ON_LOGITS, trainer=dict(trainer)),
            processes_of(layout),
            trajectories=some_trajectories(),
            objectives=[ObjectiveConfig()],
        )[0][0]
        for layout in (None, "tp2-sp")
    )
    assert alone["alp/sigma_max"] == 0 and alone["alp/effective_fraction"] == 0
    assert alone["mismatch_during_perturbed/k3"] != alone["mismatch_before/k3"]
    for key in alone.keys() - {"tokens/padding_share"}:
        assert split[key] == pytest.approx(alone[key], rel=1e-5, abs=1e-5), key
