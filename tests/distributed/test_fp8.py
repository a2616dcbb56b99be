"""Emulated FP8 layers inside Megatron: layouts, recomputation, checkpoints."""

import pytest
import torch

from alp_megatron.config.schema import Fp8Config
from tests.distributed.layouts import config_for, processes_of, some_sequences, some_trajectories
from tests.models import make_model

JOBS = "tests.distributed.jobs:"
FP8_JOBS = "tests.distributed.fp8_jobs:"
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """At TP 2 every shard is a multiple of the 128 elements of a block, so that blocks are the
    same in all layouts."""
    return make_model(
        tmp_path_factory.mktemp("wide"),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
    )


def gradients(workers, model_dir, layout=None):
    return workers.run(
        FP8_JOBS + "gradients_of_recipes",
        config_for(model_dir, layout),
        processes_of(layout),
        trajectories=some_trajectories(),
        recipes=RECIPES,
    )[0]


@pytest.fixture(scope="module")
def one_process(workers, wide_model):
    return gradients(workers, wide_model)


@pytest.mark.parametrize("layout", ["tp2", "tp2-sp", "pp2", "recompute-full"])
def test_gradients_agree_over_layouts(workers, wide_model, one_process, layout):
    ours = gradients(workers, wide_model, layout)
    for recipe, expected in one_process.items():
        errors = {
            name: float((ours[recipe]["gradients"][name] - g).norm() / g.norm())
            for name, g in expected["gradients"].items()
        }
        print(recipe, layout, max(errors.items(), key=lambda e: e[1]), sum(errors.values())/len(errors))
