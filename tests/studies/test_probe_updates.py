"""Methods tried one after another in the same processes do not touch each other."""

import copy

import numpy as np
import pytest
import torch

from alp_megatron.metrics.keys import envelope_keys
from tests.support.layouts import config_for, processes_of, some_trajectories

JOBS = "tests.support.jobs:"
UPDATES = 4


def configs(model, layout):
    base = config_for(
        model,
        layout,
        # A larger eps keeps Adam from blowing rounding up to a whole step where a gradient is ~0.
        trainer={"lr": 1e-3, "adam_eps": 1e-3, "global_batch_size": 2, "micro_batch_size": 1},
        perturbation={"sigma0": 0.05, "perturb_lr": 1e-2},
    )
    named = {}
    for name, method, sigma0 in (
        ("alp", "alp", 0.05),
        ("bypass", "bypass", 0.05),
        ("alp without noise", "alp", 0.0),
        ("grpo", "grpo", 0.05),
        ("bypass again", "bypass", 0.05),
    ):
        named[name] = copy.deepcopy(base)
        named[name].objective.method = method
        named[name].perturbation.sigma0 = sigma0
    return named


def probe(workers, model, layout):
    named = configs(model, layout)
    return workers.run(
        JOBS + "off_policy",
        named["alp"],
        processes_of(layout),
        configs=named,
        trajectories=some_trajectories(),
    )[0]


@pytest.fixture(scope="module")
def alone(workers, tied_model):
    return probe(workers, tied_model, None)


def test_each_method_starts_anew(alone):
    assert [m["update"] for m in alone["alp"]] == list(range(UPDATES))
    assert alone["bypass again"] == alone["bypass"]
    for with_noise_off, bypass in zip(alone["alp without noise"], alone["bypass"], strict=True):
        assert with_noise_off == bypass
    # Before any update the clean policy is the same, whatever the method.
    first = {
        name: {k: m[0][k] for k in m[0] if "mismatch_during_clean" in k}
        for name, m in alone.items()
    }
    assert first["alp"] == first["bypass"] == first["grpo"]
    # Then they part.
    last = [m[-1]["mismatch_during_clean/k3"] for m in alone.values()]
    assert len({round(value, 9) for value in last[:2] + last[3:4]}) == 3


def test_metrics_are_whole(alone):
    for metrics in alone["alp"]:
        assert {*envelope_keys(), "envelope/width_clean", "alp/sigma_layer_3"} <= metrics.keys()
        assert all(np.isfinite(value) for value in metrics.values())
        assert metrics["ratio/mean"] != metrics["ratio_clean/mean"]
    for metrics in alone["bypass"]:
        assert metrics["envelope/width_clean"] == metrics["envelope/width_perturbed"]
        assert metrics["alp/sigma_max"] == 0


def test_a_layout_changes_no_metric(workers, tied_model, alone):
    for name, metrics in probe(workers, tied_model, "tp2-sp").items():
        for ours, expected in zip(metrics, alone[name], strict=True):
            assert ours == pytest.approx(expected, rel=1e-5, abs=1e-5), name


def test_weights_of_a_checkpoint_without_its_optimizer(workers, tied_model, tmp_path):
    """Written by two processes that share the layers out, read by one."""
    config = config_for(
        tied_model, "tp2-sp", trainer={"lr": 1e-3}, perturbation={"perturb_lr": 0.1}
    )
    saved = workers.run(
        JOBS + "save_then_continue",
        config,
        2,
        run_dir=str(tmp_path),
        trajectories=some_trajectories(),
    )
    assert saved
    loaded = workers.run(
        JOBS + "start_of_probe",
        config_for(tied_model),
        1,
        checkpoint=str(tmp_path / "checkpoints" / "step_000001"),
    )[0]
    from safetensors.torch import load_file

    # The export beside it is of the same weights, rounded to the rollout's dtype.
    export = load_file(tmp_path / "checkpoints/step_000001/hf/model.safetensors")
    base = load_file(f"{tied_model}/model.safetensors")
    for name, tensor in export.items():
        assert torch.equal(loaded["weights"][name].to(tensor.dtype), tensor), name
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(loaded["weights"][name], base[name].float())
    assert loaded["scales"] == [0.0] * len(loaded["scales"])
