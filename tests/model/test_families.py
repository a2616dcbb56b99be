"""Every family's Megatron model computes what transformers computes, whatever the layout."""

import pytest
import torch
from safetensors.torch import load_file

from tests.support.layouts import layout_config, layouts_of, some_sequences, some_trajectories
from tests.support.marks import slow_unless
from tests.support.models import FAMILIES, SHAPES

JOBS = "tests.support.jobs:"


def test_every_family_has_shapes():
    assert {shape["family"] for shape in SHAPES.values()} == set(FAMILIES)


def in_layouts() -> list:
    """Every shape in every layout; by default in those that hold the most of it: one process, more
    ranks than key-value heads, and the last, which has everything."""
    found = []
    for name in SHAPES:
        *others, last = layouts_of(name)
        for layout in (*others, last):
            default = layout in ("one", "tp4", "tp4-sp", last)
            found.append(slow_unless(default, name, layout))
    return found


@pytest.mark.parametrize(("name", "layout"), in_layouts())
def test_logprobs_equal_transformers(workers, model_of, name, layout):
    directory, expected = model_of(name)
    config = layout_config(directory, layout)
    ours = workers.run(
        JOBS + "logprobs", config, config.runtime.world_size, sequences=some_sequences()
    )[0]
    for sample_id, logprobs in enumerate(expected):
        torch.testing.assert_close(ours[sample_id].double(), logprobs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_moe tied, plain weights"])
@pytest.mark.parametrize("layout", ["ep2", "tp2-sp-ep2", "tp2-sp-pp2-vpp2-ep2"])
def test_export_reproduces_the_experts(workers, model_of, name, layout):
    directory, _ = model_of(name)
    config = layout_config(directory, layout)
    ours = workers.run(JOBS + "exported", config, config.runtime.world_size)[0]
    on_disk = load_file(f"{directory}/model.safetensors")
    assert ours.keys() == on_disk.keys()
    for tensor_name, tensor in on_disk.items():
        assert torch.equal(ours[tensor_name], tensor), tensor_name


# Norms of queries and keys, biases behind a sum over TP, shared key-value heads, the router.
TRAINED = {
    "llama with biases": ["tp2-sp", "tp4"],
    "qwen3 one key-value head": ["tp2-sp", "tp4", "pp2-vpp2"],
    "qwen3_moe": ["ep2", "tp2-sp-ep2", "tp4-sp", "pp2-ep2", "tp2-sp-ep4-dp2"],
    "qwen3_moe tied, plain weights": ["ep2", "tp2-sp-ep2", "tp2-sp-pp2-vpp2-ep2"],
}


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_those_of_one_process(workers, model_of, name):
    directory, _ = model_of(name)

    def update(layout):
        config = layout_config(directory, layout)
        return workers.run(
            JOBS + "update_gradients",
            config,
            config.runtime.world_size,
            trajectories=some_trajectories(),
        )[0]

    expected = update("one")
    assert any(name.startswith("log_sigma_scale") for name in expected["gradients"])
    for layout in TRAINED[name]:
        ours = update(layout)
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert ours["gradients"].keys() == expected["gradients"].keys()
        for tensor_name, gradient in expected["gradients"].items():
            assert gradient.norm() > 0, tensor_name
            error = (ours["gradients"][tensor_name] - gradient).norm() / gradient.norm()
            assert error < 1e-4, f"{layout}, {tensor_name}: relative error {error:.1e}"
