import json

import pytest
import torch
from safetensors.torch import save_file

from alp_megatron.check.validate import validate
from alp_megatron.config.layout import data_parallel_size, num_microbatches, world_size
from alp_megatron.config.load import load_config
from alp_megatron.config.methods import METHODS
from alp_megatron.errors import UserError
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.hf.tensors import HfTensors
from alp_megatron.tasks.arithmetic import model_config, write_model_files


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """The arithmetic model's directory with random weights: 4 layers, 4 heads, 2 kv heads."""
    from transformers import Qwen2ForCausalLM

    directory = tmp_path_factory.mktemp("model")
    write_model_files(directory)
    Qwen2ForCausalLM(model_config()).save_pretrained(directory)
    return directory


@pytest.fixture
def model(pristine, tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    for file in pristine.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


@pytest.fixture
def configure(model, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {{path: '{model}'}}")
    return lambda *overrides: load_config(path, list(overrides))


def refusal(config, **options):
    with pytest.raises(UserError) as caught:
        validate(config, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 400
    return sentence


TP = "model.tensor_model_parallel_size"
PP = "model.pipeline_model_parallel_size"
VPP = "model.virtual_pipeline_model_parallel_size"
EP = "model.expert_model_parallel_size"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [f"{TP}=2", "model.sequence_parallel=true"],
        [f"{TP}=2", f"{PP}=2", "runtime.world_size=8"],
        [f"{TP}=4"],  # two ranks share each key-value head
        [f"{PP}=2", f"{VPP}=2"],
        ["perturbation.sigma0=0", "perturbation.layer_start=3"],
        ["objective.method=grpo", "model.recompute_granularity=full"],
        ["rollout.quantization=int4"],
        [
            "rollout.quantization=fp8_block",
            "rollout.quantization_ignore=['*.q_proj', '*.k_proj', '*.v_proj']",
        ],
    ],
)
def test_what_can_run_is_accepted(configure, overrides):
    assert validate(configure(*overrides)).num_hidden_layers == 4


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([f"{TP}=3"], f"{TP}=3 does not divide the model's 4 attention heads: use 1, 2 or 4."),
        (
            ["rollout.quantization=fp8_block"],
            "rollout.quantization=fp8_block cannot hold model.layers.0.self_attn.k_proj.weight "
            "(model.layers.0.self_attn.k_proj.weight has 64 rows",
        ),
        (
            ["rollout.quantization=int8", "rollout.quantization_ignore=['lm_head']"],
            "rollout.quantization_ignore: 'lm_head' matches no linear layer: use names such as ",
        ),
        (
            ["rollout.quantization=int8", "rollout.quantization_ignore=['*.k_proj']"],
            "but vLLM runs q_proj, k_proj, v_proj as one matrix: name all of them or none.",
        ),
        (
            ["rollout.quantization=int4", "rollout.quantization_ignore=['*_proj']"],
            "rollout.quantization=int4 finds no layer to quantise: use another format, or 'none'.",
        ),
        ([f"{EP}=2"], f"{EP}=2 needs a model with experts: set it to 1."),
        (["model.sequence_parallel=true"], "model.sequence_parallel=true needs"),
        ([f"{PP}=3"], f"{PP}=3 does not divide the model's 4 layers: use 1, 2 or 4."),
        ([f"{VPP}=2"], f"{VPP}=2 needs {PP} of 2 or more"),
        ([f"{PP}=2", f"{VPP}=3"], f"{VPP}=3 does not divide the 2 layers"),
        ([f"{PP}=2", "runtime.world_size=3"], "runtime.world_size=3 is not a multiple of the 2"),
        (["rollout.max_model_len=513"], "rollout.max_model_len=513 is more than the model's 512"),
        (["rollout.max_new_tokens=256"], "rollout.max_new_tokens=256 leaves no room"),
        (["rollout.stop_token_ids=[2, 64]"], "rollout.stop_token_ids holds 64"),
        (["rollout.stop_token_ids=[-1]"], "rollout.stop_token_ids holds -1"),
        (["perturbation.layer_end=5"], "perturbation.layer_end=5 is beyond"),
        (["perturbation.layer_start=4"], "perturbation.layer_start=4 leaves no layer"),
        (["perturbation.layer_start=2", "perturbation.layer_end=2"], "leaves no layer before 2"),
        (["trainer.global_batch_size=48"], "trainer.global_batch_size=48 does not divide the 256"),
        (["trainer.micro_batch_size=48"], "trainer.global_batch_size=64 is not a multiple"),
        (["runtime.world_size=8"], "8 data-parallel replicas"),
        ([f"{PP}=2", f"{VPP}=2", "trainer.micro_batch_size=64"], "makes 1 micro-batches"),
        (["task.name=file"], "task.name=file needs task.train"),
        (["task.name=file", "task.train=nowhere"], "task.train=nowhere is not a file"),
    ],
)
def test_what_cannot_run_is_refused(configure, overrides, expected):
    assert expected in refusal(configure(*overrides))


def test_length_normalisation_belongs_to_the_sequence_level(configure):
    settings = ["objective.length_normalized=true", "objective.level=token"]
    assert "objective.length_normalized" in refusal(configure(*settings))
    validate(configure("objective.length_normalized=true", "objective.level=sequence"))


CORRECTION = "objective.correction"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=gspo", "level=token"], "objective.level=token contradicts objective.method=gspo"),
        (["method=gspo", "length_normalized=false"], "length_normalized=false contradicts"),
        (["method=tis", "correction.weight=none"], "which means truncated there"),
        (["method=mis", "correction.weight=truncated"], "which means masked or window there"),
        (
            ["method=icepop", "correction.weight_level=sequence"],
            "weight_level=sequence contradicts",
        ),
        (["method=bypass", "correction.weight=masked"], "contradicts objective.method=bypass"),
        (["method=alp", "correction.weight=truncated"], "contradicts objective.method=alp"),
        (["method=mis", "correction.weight_low=6"], "weight_low=6 is not below"),
        (["method=icepop", "correction.weight_high=0.5"], "so that nothing would be kept"),
        (["method=tis", "correction.weight_low=0.1"], "weight_low=0.1 has no meaning"),
        (["method=tis", "correction.weight_high=null"], f"needs {CORRECTION}.weight_high"),
        (["method=gspo", "correction.weight=masked"], f"needs {CORRECTION}.weight_high"),
        (["method=grpo", "correction.weight_high=2"], "has no meaning for"),
        (["correction.reject_high=2"], f"without {CORRECTION}.reject_by"),
        (["correction.reject_by=k2"], f"needs {CORRECTION}.reject_high"),
        (["correction.reject_by=k3", "correction.reject_low=0.1"], "rejects what agrees best"),
        (["correction.reject_by=k3", "correction.reject_high=-1"], "is never negative"),
        (
            ["correction.reject_by=k1", "correction.reject_low=1", "correction.reject_high=-1"],
            "reject_low=1 is not below",
        ),
        (["method=tis", "correction.denominator=kept"], "where nothing is rejected"),
    ],
)
def test_contradictory_objectives_are_refused(configure, overrides, expected):
    assert expected in refusal(configure(*(f"objective.{o}" for o in overrides)))


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"method={name}"] for name in METHODS),
        ["method=gspo", "correction.weight=masked", "correction.weight_high=2"],
        ["method=mis", "correction.weight=window", "correction.weight_level=geometric"],
        ["method=bypass", "correction.reject_by=k1", "correction.reject_low=-1"],
        ["method=alp", "correction.veto=1e-4", "correction.denominator=kept"],
    ],
)
def test_objectives_that_make_sense_pass(configure, overrides):
    validate(configure(*(f"objective.{o}" for o in overrides)))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("learnable=true", "perturbation.learnable=true has no meaning"),
        ("sigma_mode=relative", "set it to absolute"),
        ("layer_start=1", "set it to 0"),
        ("layer_end=2", "set it to null"),
    ],
)
def test_noise_on_the_logits_has_one_fixed_scale(configure, setting, expected):
    logits = ["perturbation.target=logits", "perturbation.learnable=false"]
    validate(configure(*logits))
    assert expected in refusal(configure(*logits, f"perturbation.{setting}"))


def test_batches_matter_only_for_training(configure):
    config = configure("trainer.global_batch_size=48")
    assert validate(config, for_training=False)


def test_layout_arithmetic(configure):
    config = configure(f"{TP}=2", "runtime.world_size=4", "trainer.micro_batch_size=8")
    assert (world_size(config), data_parallel_size(config), num_microbatches(config)) == (4, 2, 4)
    assert world_size(configure(f"{TP}=2", f"{PP}=2")) == 4


def test_the_parameter_count_is_transformers_own(model):
    from transformers import Qwen2ForCausalLM

    expected = sum(p.numel() for p in Qwen2ForCausalLM(model_config()).parameters())
    assert read_model_shape(model).num_parameters == expected


def edit_config(model, **changes):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": None}, "architecture"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers"),
        ({"num_key_value_heads": None}, "num_key_value_heads"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"hidden_size": 130, "head_dim": None}, "hidden_size"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding-window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "llama3"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"vocab_size": 20}, "tokenizer belongs to another model"),
    ],
)
def test_models_that_would_compute_something_else(model, configure, changes, expected):
    edit_config(model, **changes)
    assert expected in refusal(configure(), for_training=False)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_files_that_are_missing_or_damaged(model, configure, name):
    whole = (model / name).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-2], b"\xff" * 100, b"[]"):
        (model / name).write_bytes(damaged)
        assert name in refusal(configure(), for_training=False)
    (model / name).unlink()
    assert name in refusal(configure(), for_training=False)


def test_a_model_path_that_is_no_directory(configure, tmp_path):
    for path in (tmp_path / "absent", tmp_path / "run.yaml"):
        assert "not a directory" in refusal(configure(f"model.path='{path}'"))


def test_shards_are_held_to_their_index(model, configure):
    (model / "model.safetensors").unlink()
    save_file({"a": torch.zeros(3)}, model / "one.safetensors")
    save_file({"b": torch.zeros(3)}, model / "two.safetensors")
    index = model / "model.safetensors.index.json"

    def name_shards(**weight_map):
        index.write_text(json.dumps({"weight_map": weight_map}))

    name_shards(a="one.safetensors", b="two.safetensors")
    assert HfTensors(model).shapes == {"a": (3,), "b": (3,)}
    name_shards(a="one.safetensors", b="one.safetensors")
    assert "one.safetensors: lacks b" in refusal(configure())
    name_shards(a="one.safetensors", b="three.safetensors")
    assert "three.safetensors is missing" in refusal(configure())
    index.write_text("{}")
    assert "weight_map" in refusal(configure())


def test_evaluations_and_checkpoints_come_with_a_sync(configure):
    lagging = ["rollout.sync_interval=4", "evaluation.interval=8", "trainer.save_interval=4"]
    validate(configure(*lagging))
    assert "evaluation.interval=6 is not a multiple" in refusal(
        configure(*lagging, "evaluation.interval=6")
    )
    assert "trainer.save_interval=10 is not a multiple of rollout.sync_interval=4: use 12" in (
        refusal(configure(*lagging, "trainer.save_interval=10"))
    )


def test_only_a_split_optimizer_is_saved_in_its_splits(configure):
    wanted = "trainer.distrib_optim_sharding_type=dp_reshardable"
    validate(configure(wanted))
    whole = "trainer.use_distributed_optimizer=false"
    assert "set trainer.use_distributed_optimizer=true" in refusal(configure(wanted, whole))


def test_an_undivided_optimizer_has_weights_of_one_type(configure):
    whole = "trainer.use_distributed_optimizer=false"
    validate(configure(whole))
    assert "cannot save weights of two types" in refusal(
        configure(whole, "model.params_dtype=bfloat16")
    )
