"""Every family's Megatron model computes what transformers computes, whatever the layout."""

import pytest
import torch
from safetensors.torch import load_file

from alp_megatron.config.schema import (
    Config,
    ModelConfig,
    PerturbationConfig,
    RuntimeConfig,
    TrainerConfig,
)
from tests.distributed.layouts import NUM_SAMPLES, some_sequences, some_trajectories
from tests.families import FAMILIES, SHAPES, hf_logprobs, make_family_model

JOBS = "tests.distributed.jobs:"

# name -> (processes, TP, PP, VPP, EP); TP is with sequence parallelism but for "tp4"
DENSE_LAYOUTS = {
    "one": (1, 1, 1, None, 1),
    "tp2-sp": (2, 2, 1, None, 1),
    "tp4": (4, 4, 1, None, 1),
    "pp2": (2, 1, 2, None, 1),
    "pp2-vpp2": (2, 1, 2, 2, 1),
    "tp2-sp-pp2": (4, 2, 2, None, 1),
}
MOE_LAYOUTS = {
    "one": (1, 1, 1, None, 1),
    "ep2": (2, 1, 1, None, 2),
    "tp2-sp-ep2": (2, 2, 1, None, 2),
    "tp4-sp": (4, 4, 1, None, 1),
    "tp2-sp-ep4-dp2": (4, 2, 1, None, 4),
    "pp2-ep2": (4, 1, 2, None, 2),
    "tp2-sp-pp2-vpp2-ep2": (4, 2, 2, 2, 2),
}


def layout_config(model_dir: str, layout: str) -> Config:
    processes, tp, pp, vpp, ep = (DENSE_LAYOUTS | MOE_LAYOUTS)[layout]
    return Config(
        model=ModelConfig(
            path=model_dir,
            tensor_model_parallel_size=tp,
            pipeline_model_parallel_size=pp,
            virtual_pipeline_model_parallel_size=vpp,
            expert_model_parallel_size=ep,
            sequence_parallel=tp > 1 and layout != "tp4",
            logprob_chunk_tokens=16,
        ),
        runtime=RuntimeConfig(world_size=processes),
        trainer=TrainerConfig(
            micro_batch_size=2,
            global_batch_size=NUM_SAMPLES,
            lr=0.0,
            clip_grad=0.0,
            use_distributed_optimizer=False,
        ),
        perturbation=PerturbationConfig(sigma0=0.02, perturb_lr=0.0),
    )


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """Shape name -> (directory, transformers' log-probabilities), made once."""
    made = {}

    def get(name):
        if name not in made:
            directory = make_family_model(tmp_path_factory.mktemp("family"), SHAPES[name])
            made[name] = directory, hf_logprobs(directory, some_sequences())
        return made[name]

    return get


def layouts_of(name: str) -> dict:
    return MOE_LAYOUTS if "moe" in SHAPES[name]["family"] else DENSE_LAYOUTS


def test_every_family_has_shapes():
    assert {shape["family"] for shape in SHAPES.values()} == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "layout"), [(name, layout) for name in SHAPES for layout in layouts_of(name)]
)
def test_logprobs_equal_transformers(workers, model_of, name, layout):
    directory, expected = model_of(name)
    config = layout_config(directory, layout)
    ours = workers.run(
        JOBS + "logprobs", config, config.runtime.world_size, sequences=some_sequences()
    )[0]
    for sample_id, logprobs in enumerate(expected):
        torch.testing.assert_close(ours[sample_id], logprobs, rtol=0, atol=1e-4)


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
