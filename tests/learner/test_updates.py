"""The policy against what this project did not write, and the properties of its update."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.layouts import (
    config_for,
    processes_of,
    some_sequences,
    some_trajectories,
)
from tests.support.marks import slow
from tests.support.models import hf_logprobs, make_model

JOBS = "tests.support.jobs:"


@pytest.mark.parametrize("family", ["tied", "untied"])
def test_logprobs_equal_transformers(workers, tied_model, untied_model, family):
    model_dir = {"tied": tied_model, "untied": untied_model}[family]
    sequences = some_sequences()
    ours = workers.run(JOBS + "logprobs", config_for(model_dir), 1, sequences=sequences)[0]
    for sample_id, tokens in enumerate(sequences):
        expected = hf_logprobs(model_dir, tokens)
        torch.testing.assert_close(ours[sample_id].double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", [None, "tp2-sp"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_without_sigma_alp_is_bitwise_bypass(workers, tied_model, layout, level):
    results = [
        workers.run(
            JOBS + "update_gradients",
            config_for(
                tied_model,
                layout,
                objective={"method": method, "level": level},
                perturbation={"sigma0": sigma0},
            ),
            processes_of(layout),
            trajectories=some_trajectories(),
        )[0]
        for method, sigma0 in (("alp", 0.0), ("bypass", 0.0), ("bypass", 0.5))
    ]
    for other in results[1:]:
        assert results[0]["loss"] == other["loss"]
        for name, gradient in results[0]["gradients"].items():
            assert torch.equal(gradient, other["gradients"][name]), name
        np.testing.assert_array_equal(results[0]["tokens"]["logprobs"], other["tokens"]["logprobs"])


@pytest.mark.parametrize("layout, method", [(None, "alp"), ("tp2-sp", "alp"), (None, "bypass")])
def test_the_clean_numerator_is_that_before_the_update(workers, tied_model, layout, method):
    config = config_for(
        tied_model,
        layout,
        objective={"method": method},
        perturbation={"sigma0": 0.05},
        trainer={"lr": 1e-3},
    )
    measured, plain = (
        workers.run(
            JOBS + "update_and_clean",
            config,
            processes_of(layout),
            trajectories=some_trajectories(),
            measure_clean=measure,
        )[0]
        for measure in (True, False)
    )
    record = measured["record"]
    before, after = (
        torch.cat([measured[name][t.sample_id] for t in some_trajectories()]).numpy()
        for name in ("before", "after")
    )
    np.testing.assert_array_equal(record.clean["logprobs"], before)
    assert abs(after - before).max() > 1e-3
    noise = abs(record.tokens["logprobs"] - before).max()
    assert noise > 1e-3 if method == "alp" else noise == 0
    # Looking on changes nothing.
    assert plain["record"].clean is None
    assert plain["record"].grad_norm == record.grad_norm
    for sample_id, logprobs in plain["after"].items():
        assert torch.equal(logprobs, measured["after"][sample_id])


def test_grpo_takes_the_ratio_to_old_logprobs(workers, tied_model):
    trajectories = some_trajectories()
    shift = {t.sample_id: torch.full((len(t.response_ids),), -4.0) for t in trajectories}
    result = workers.run(
        JOBS + "update_gradients",
        config_for(tied_model, objective={"method": "grpo"}),
        1,
        trajectories=trajectories,
        old_logprobs=shift,
    )[0]
    mask = np.concatenate([t.loss_mask for t in trajectories])
    expected = (result["tokens"]["logprobs"] + 4.0) * mask
    np.testing.assert_allclose(result["tokens"]["log_ratio"], expected, atol=1e-6)


# Relative noise counts the RMS of a row as a constant, so that below the last layer its gradient
# leaves out, by definition, how a layer's noise changes the scale of later noise.
@pytest.mark.parametrize("mode, layer", [("absolute", 0), ("absolute", 2), ("relative", 3)])
def test_sigma_gradient_matches_finite_differences(workers, tied_model, mode, layer):
    config = config_for(
        tied_model,
        perturbation={"sigma0": 0.05, "sigma_mode": mode},
        objective={"eps_high": 50.0, "eps_low": 1.0, "dual_clip": None},
    )
    step = 0.01
    low, high = workers.run(
        JOBS + "loss_at_scales",
        config,
        1,
        trajectories=some_trajectories(),
        layer=layer,
        shifts=[-step, step],
    )[0]
    gradients = workers.run(JOBS + "update_gradients", config, 1, trajectories=some_trajectories())[
        0
    ]["gradients"]
    numeric = (high - low) / (2 * step)
    # Central differences err by O(step^2), and the fp32 loss by about 1e-7 / step.
    assert gradients[f"log_sigma_scale.{layer}"].item() == pytest.approx(
        numeric, rel=0.02, abs=1e-5
    )


@pytest.mark.parametrize("level", ["token", slow("sequence")])
def test_without_sigma_alp_stays_bitwise_bypass_over_updates(workers, tied_model, level):
    results = [
        workers.run(
            JOBS + "weights_after_updates",
            config_for(
                tied_model,
                "tp2-sp",
                trainer={"lr": 1e-3, "clip_grad": 1.0, "use_distributed_optimizer": True},
                objective={"method": method, "level": level},
                perturbation={"sigma0": sigma0, "perturb_lr": 1e-2},
            ),
            2,
            trajectories=some_trajectories(),
            updates=3,
        )[0]
        for method, sigma0 in (("alp", 0.0), ("bypass", 0.5))
    ]
    start = load_file(f"{tied_model}/model.safetensors")
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name
        assert not torch.equal(tensor, start[name]), name


def test_layer_range_and_unlearned_sigma(workers, tied_model):
    gradients = workers.run(
        JOBS + "update_gradients",
        config_for(tied_model, perturbation={"layer_start": 1, "layer_end": 3}),
        1,
        trajectories=some_trajectories(),
    )[0]["gradients"]
    assert [gradients[f"log_sigma_scale.{i}"].item() != 0 for i in range(4)] == [
        False,
        True,
        True,
        False,
    ]


def test_loss_by_sequence_does_not_depend_on_the_micro_batch(workers, tied_model):
    """That by token: model/test_layouts."""
    losses = [
        workers.run(
            JOBS + "update_gradients",
            config_for(tied_model, layout, objective={"loss_normalization": "sequence"}),
            processes_of(layout),
            trajectories=some_trajectories(),
        )[0]["loss"]
        for layout in ("micro-batch-1", "micro-batch-4", "dp2")
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_packing_wastes_little(workers, tied_model):
    result = workers.run(
        JOBS + "update_gradients",
        config_for(tied_model, "tp2-sp"),
        2,
        trajectories=some_trajectories(),
    )[0]
    assert result["padding_share"] < 0.05
    assert result["effective_fraction"] > 0.99  # fp32 keeps noise of sigma 0.02


def test_noise_below_bf16_rounding_is_reported(workers, tmp_path):
    model_dir = make_model(tmp_path / "bf16", dtype="bfloat16")
    config = config_for(model_dir, perturbation={"sigma0": 1e-6})
    config.model.params_dtype = "bfloat16"
    result = workers.run(JOBS + "update_gradients", config, 1, trajectories=some_trajectories())[0]
    assert 0 < result["effective_fraction"] < 0.01


def test_a_gradient_that_is_not_finite_is_skipped(workers, tied_model):
    config = config_for(tied_model, "tp2-sp", trainer={"lr": 1e-3, "clip_grad": 1.0})
    result = workers.run(JOBS + "update_with_nan", config, 2, trajectories=some_trajectories())[0]
    assert result == {"skipped": [True, False], "unchanged": True, "trained": True}


@pytest.mark.parametrize("layout", [None, "tp2-sp", "pp2-vpp2", "tp2-pp2", "dp2"])
def test_export_reproduces_the_checkpoint(workers, untied_model, layout):
    ours = workers.run(JOBS + "exported", config_for(untied_model, layout), processes_of(layout))
    on_disk = load_file(f"{untied_model}/model.safetensors")
    assert ours[0].keys() == on_disk.keys()
    for name, tensor in on_disk.items():
        assert torch.equal(ours[0][name], tensor), name
    assert all(not of_rank for of_rank in ours[1:])
    order = list(ours[0])
    assert order[0] == "model.embed_tokens.weight" and order[-1] == "lm_head.weight"


@pytest.mark.parametrize("layout", [slow("tp2-sp"), "dp2"])
def test_a_resumed_run_is_bitwise_the_unbroken_one(workers, tied_model, tmp_path, layout):
    config = config_for(
        tied_model,
        layout,
        trainer={"lr": 1e-3, "use_distributed_optimizer": True},
        perturbation={"perturb_lr": 1e-2},
    )
    arguments = {"run_dir": str(tmp_path), "trajectories": some_trajectories()}
    unbroken = workers.run(JOBS + "save_then_continue", config, 2, **arguments)[0]
    resumed = workers.run(JOBS + "load_then_continue", config, 2, **arguments)[0]
    assert resumed["counters"] == {"policy_version": 5, "step": 1}
    assert resumed["sigmas"] == unbroken["sigmas"]
    assert unbroken["sigmas"] != [config.perturbation.sigma0] * 4
    for name, tensor in unbroken["weights"].items():
        assert torch.equal(resumed["weights"][name], tensor), name
    names = load_file(tmp_path / "checkpoints/step_000001/hf/model.safetensors").keys()
    assert names == load_file(f"{tied_model}/model.safetensors").keys(), "sigmas must not leave"


def test_a_checkpoint_is_read_in_another_layout(workers, tied_model, tmp_path):
    settings = {
        "trainer": {"lr": 1e-3, "use_distributed_optimizer": True, "adam_eps": 1e-3},
        "perturbation": {"perturb_lr": 1e-2},
    }
    arguments = {"run_dir": str(tmp_path), "trajectories": some_trajectories()}
    unbroken = workers.run(
        JOBS + "save_then_continue", config_for(tied_model, "tp2-sp", **settings), 2, **arguments
    )[0]
    for layout in (None, "pp2"):
        settings["trainer"] = dict(settings["trainer"])
        resumed = workers.run(
            JOBS + "load_then_continue",
            config_for(tied_model, layout, **{k: dict(v) for k, v in settings.items()}),
            processes_of(layout),
            **arguments,
        )[0]
        for name, tensor in unbroken["weights"].items():
            torch.testing.assert_close(resumed["weights"][name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["alp", "icepop", "gspo"])
@pytest.mark.parametrize("layout", [None, "tp2-sp"])
def test_the_host_runs_ahead_of_a_gpu(workers, tied_model, layout, method):
    """Within a pass nothing needs a value or a size from the device. A log-prob pass is in
    evaluation mode: in training mode Transformer Engine would keep its scales for a recomputation.
    """
    config = config_for(tied_model, layout, objective={"method": method})
    found = workers.run(
        JOBS + "what_waits", config, processes_of(layout), trajectories=some_trajectories()
    )[0]
    assert found == {"log-probs": ([], False), "update": ([], True), "afterwards": True}
