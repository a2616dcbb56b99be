"""Noise, log-probabilities and gradients are those of one process, whatever the layout."""

import numpy as np
import pytest
import torch

from tests.distributed.layouts import (
    KEY,
    LAYOUTS,
    config_for,
    processes_of,
    some_sequences,
    some_trajectories,
)

JOBS = "tests.distributed.jobs:"


def one_process(workers, job, model_dir, **arguments):
    return workers.run(JOBS + job, config_for(model_dir), 1, **arguments)[0]


@pytest.fixture(scope="module")
def reference(workers, tied_model):
    """What one process computes."""
    sequences = some_sequences()
    return {
        "noise": one_process(workers, "noise", tied_model, sequences=sequences),
        "clean": one_process(workers, "logprobs", tied_model, sequences=sequences),
        "perturbed": one_process(workers, "logprobs", tied_model, sequences=sequences, key=KEY),
        "update": one_process(
            workers, "update_gradients", tied_model, trajectories=some_trajectories()
        ),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_is_bitwise_the_same(workers, tied_model, reference, layout):
    config = config_for(tied_model, layout)
    everywhere = workers.run(
        JOBS + "noise", config, processes_of(layout), sequences=some_sequences()
    )
    seen = {}
    for of_rank in everywhere:
        for place, row in of_rank.items():
            assert seen.setdefault(place, row) == row, f"ranks differ at {place}"
    assert seen == reference["noise"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logprobs_agree(workers, tied_model, reference, layout):
    for name, key in (("clean", None), ("perturbed", KEY)):
        config = config_for(tied_model, layout)
        sequences = some_sequences()
        for of_rank in workers.run(
            JOBS + "logprobs", config, processes_of(layout), sequences=sequences, key=key
        ):
            for sample_id, expected in reference[name].items():
                torch.testing.assert_close(of_rank[sample_id], expected, rtol=0, atol=1e-5)


def test_noise_changes_the_logprobs(reference):
    difference = torch.cat(list(reference["clean"].values())) - torch.cat(
        list(reference["perturbed"].values())
    )
    assert 1e-4 < difference.abs().mean() < 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_agree(workers, tied_model, reference, layout):
    config = config_for(tied_model, layout)
    ours = workers.run(
        JOBS + "update_gradients",
        config,
        processes_of(layout),
        trajectories=some_trajectories(),
    )[0]
    expected = reference["update"]
    assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    np.testing.assert_allclose(
        ours["tokens"]["logprobs"], expected["tokens"]["logprobs"], rtol=0, atol=1e-5
    )
    assert ours["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        error = (ours["gradients"][name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"


def test_padded_vocabulary(workers, untied_model):
    """An embedding whose rows TP does not divide, and an output head of its own."""
    sequences = some_sequences(vocab_size=61)
    alone = one_process(workers, "logprobs", untied_model, sequences=sequences)
    for layout in ("tp2-sp", "tp2-pp2"):
        config = config_for(untied_model, layout)
        ranks = workers.run(JOBS + "logprobs", config, processes_of(layout), sequences=sequences)
        for sample_id, expected in alone.items():
            torch.testing.assert_close(ranks[0][sample_id], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["tp2-sp", "dp2", "pp2-vpp2", "tp2-sp-dp2"])
def test_weights_after_updates_agree_with_the_distributed_optimizer(workers, tied_model, layout):
    settings = {"lr": 1e-3, "clip_grad": 1.0, "use_distributed_optimizer": True}
    arguments = {"trajectories": some_trajectories(), "updates": 3}
    # A larger eps keeps Adam from blowing rounding up to a whole step where a gradient is ~0.
    trainer = settings | {"adam_eps": 1e-3}
    ours, expected = (
        workers.run(
            JOBS + "weights_after_updates",
            config_for(tied_model, name, trainer=trainer, perturbation={"perturb_lr": 1e-2}),
            processes_of(name),
            **arguments,
        )[0]
        for name in (layout, None)
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)
