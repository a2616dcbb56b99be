"""FP8 settings that cannot run are refused with one sentence."""

from types import SimpleNamespace

import pytest

from alp_megatron.check.fp8 import check_fp8, unsupported
from alp_megatron.config.schema import Config, Fp8Config, ModelConfig, TrainerConfig
from alp_megatron.errors import UserError

SHAPE = SimpleNamespace(experts=None, num_hidden_layers=4)


def config(pipeline: int = 1, shared: bool = True, **fp8) -> Config:
    model = ModelConfig(
        path="x", pipeline_model_parallel_size=pipeline, fp8=Fp8Config.model_validate(fp8)
    )
    return Config(model=model, trainer=TrainerConfig(use_distributed_optimizer=shared))


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"recipe": "delayed", "num_layers_at_start_in_bf16": 1}, "delayed recipe has no layers"),
        ({"num_layers_at_end_in_bf16": 3, "pipeline": 2}, "more than the 2 layers of a pipeline"),
    ],
)
def test_layers_out_of_fp8(settings, expected):
    with pytest.raises(UserError, match=expected) as caught:
        check_fp8(config(**settings), SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"recipe": "delayed"}, "with a scale of 1; use the tensorwise or blockwise recipe"),
        ({"recipe": "mxfp8"}, "scales beside them; use the tensorwise or blockwise"),
        ({"recipe": "blockwise", "shared": False}, "needs trainer.use_distributed_optimizer=true"),
        ({"recipe": "tensorwise"}, "needs a CUDA device"),
    ],
)
def test_weights_held_in_fp8(monkeypatch, settings, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=f"^model.fp8.param_gather=true.*{expected}") as caught:
        check_fp8(config(param_gather=True, **settings), SHAPE)
    assert "\n" not in str(caught.value)


def test_the_rest_passes():
    check_fp8(config(recipe="blockwise", num_layers_at_start_in_bf16=2, pipeline=2), SHAPE)
    check_fp8(Config(model=ModelConfig(path="x")), SHAPE)


@pytest.mark.parametrize(
    "recipe, capability, cuda, reason",
    [
        ("delayed", (8, 0), "13.0", "8.9"),
        ("delayed", (8, 9), "12.8", None),
        ("tensorwise", (9, 0), "12.8", None),
        ("blockwise", (8, 9), "13.0", "9.0"),
        ("blockwise", (9, 0), "12.8", "CUDA 12.9"),
        ("blockwise", (9, 0), "13.0", None),
        ("mxfp8", (9, 0), "13.0", "10.x"),
        ("mxfp8", (10, 0), "13.0", None),
        ("mxfp8", (12, 0), "13.0", "10.x"),
    ],
)
def test_what_a_device_can_run(recipe, capability, cuda, reason):
    found = unsupported(recipe, capability, cuda)
    assert found is None if reason is None else reason in found
