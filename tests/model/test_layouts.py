"""Noise, log-probabilities and gradients are those of one process, whatever the layout."""

import numpy as np
import pytest
import torch

from tests.support.layouts import (
    LAYOUTS,
    config_for,
    processes_of,
    some_sequences,
    some_trajectories,
)
from tests.support.marks import slow

JOBS = "tests.support.jobs:"


def run(workers, model, layout, job, **arguments) -> list:
    config = config_for(model, layout)
    return workers.run(JOBS + job, config, processes_of(layout), **arguments)


def computed(workers, model, layout) -> list[dict]:
    """Noise, log-probabilities and gradients of every rank, of one build of the model."""
    arguments = {"sequences": some_sequences(), "trajectories": some_trajectories()}
    return run(workers, model, layout, "whole", **arguments)


@pytest.fixture(scope="module")
def reference(workers, tied_model):
    """What one process computes."""
    return computed(workers, tied_model, None)[0]


@pytest.fixture(scope="module", params=LAYOUTS)
def ranks(workers, tied_model, request):
    return computed(workers, tied_model, request.param)


def test_noise_is_bitwise_the_same(ranks, reference):
    seen = {}
    for of_rank in ranks:
        for place, row in of_rank["noise"].items():
            assert seen.setdefault(place, row) == row, f"ranks differ at {place}"
    assert seen == reference["noise"]


def test_logprobs_agree(ranks, reference):
    for name in ("clean", "perturbed"):
        for of_rank in ranks:
            for sample_id, expected in reference[name].items():
                torch.testing.assert_close(of_rank[name][sample_id], expected, rtol=0, atol=1e-5)


def test_gradients_agree(ranks, reference):
    ours = ranks[0]
    assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)
    np.testing.assert_allclose(
        ours["tokens"]["logprobs"], reference["tokens"]["logprobs"], rtol=0, atol=1e-5
    )
    assert ours["gradients"].keys() == reference["gradients"].keys()
    for name, gradient in reference["gradients"].items():
        error = (ours["gradients"][name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"


def test_noise_changes_the_logprobs(reference):
    difference = torch.cat(list(reference["clean"].values())) - torch.cat(
        list(reference["perturbed"].values())
    )
    assert 1e-4 < difference.abs().mean() < 0.5


def test_padded_vocabulary(workers, untied_model):
    """An embedding whose rows TP does not divide, and an output head of its own."""
    sequences = some_sequences(vocab_size=61)
    alone, *split = (
        run(workers, untied_model, layout, "logprobs", sequences=sequences)[0]
        for layout in (None, "tp2-sp", "tp2-pp2")
    )
    for ours in split:
        for sample_id, expected in alone.items():
            torch.testing.assert_close(ours[sample_id], expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def trained(workers, tied_model):
    """A layout's weights after three updates with the distributed optimizer."""

    def weights(layout):
        config = config_for(
            tied_model,
            layout,
            # A larger eps keeps Adam from blowing rounding up to a whole step where a gradient
            # is ~0.
            trainer={
                "lr": 1e-3,
                "clip_grad": 1.0,
                "use_distributed_optimizer": True,
                "adam_eps": 1e-3,
            },
            perturbation={"perturb_lr": 1e-2},
        )
        arguments = {"trajectories": some_trajectories(), "updates": 3}
        job = JOBS + "weights_after_updates"
        return workers.run(job, config, processes_of(layout), **arguments)[0]

    alone = weights(None)
    return lambda layout: (weights(layout), alone)


@pytest.mark.parametrize("layout", ["tp2-sp-dp2", "pp2-vpp2", slow("tp2-sp"), slow("dp2")])
def test_weights_after_updates_agree_with_the_distributed_optimizer(trained, layout):
    ours, expected = trained(layout)
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)
