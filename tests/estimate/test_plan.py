"""`alp-megatron plan`: figures worked out by hand, what it prints, and what it refuses."""

import shutil
from pathlib import Path

import pytest

from alp_megatron.cli import main
from alp_megatron.config.load import load_config
from alp_megatron.estimate.engine import GIB, engine_memory, engine_weights, load_hardware
from alp_megatron.estimate.fit import nearest_fit, problems
from alp_megatron.estimate.memory import held_by_stage, trainer_memory
from alp_megatron.estimate.report import training_flops
from alp_megatron.estimate.traffic import step_traffic, update_traffic
from alp_megatron.hf.shape import read_model_shape
from tests.support.repository_configs import CONFIGS, ROOT

MODELS = sorted(path.relative_to(ROOT).as_posix() for path in CONFIGS.glob("models/*/*h100*.yaml"))
CANNOT_SAMPLE = "configs/models/qwen3-235b-a22b/256xh100.yaml"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def planned(path, *overrides):
    config = load_config(path, list(overrides))
    return config, read_model_shape(config.model.path)


@pytest.mark.parametrize("path", MODELS)
def test_every_model_fits_where_its_file_says(path):
    found = problems(*planned(path), load_hardware("h100"))
    if path == CANNOT_SAMPLE:  # as its comment says
        assert len(found) == 1 and "more than a GPU has" in found[0]
    else:
        assert not found


def test_models_do_not_fit_where_there_is_no_file():
    """The dashes in docs/models.md."""
    lines = (ROOT / "docs/models.md").read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("| `")]
    assert len(rows) == 12
    for cells in rows:
        name = cells[0].strip(" `")
        for gpus, cell in zip((1, 8, 64, 256), cells[2:6], strict=True):
            file = CONFIGS / "models" / name / f"{gpus}xh100.yaml"
            assert file.exists() == (cell.strip() != "-"), (name, gpus)
            if not file.exists():
                config, shape = planned(CONFIGS / "models" / name / "256xh100.yaml")
                config.runtime.world_size = gpus
                config.trainer.global_batch_size = 256
                assert nearest_fit(config, shape, load_hardware("h100")) is None, (name, gpus)


def test_memory_of_seven_billion_parameters_by_hand():
    """TP 4, DP 2 in bfloat16: 2 bytes of weights, 4 of gradients, 12 / 2 of the optimizer."""
    config, shape = planned("configs/models/qwen2.5-7b/8xh100.yaml")
    whole = 28 * (2 * 3584 + 1) + 3584  # norms and sigmas are not split
    held = (shape.num_parameters - 28 * 2 * 3584 - 3584) // 4 + whole
    (memory,) = trainer_memory(config, shape)
    assert memory.weights == 2 * held
    assert memory.gradients == 4 * held
    assert memory.optimizer == pytest.approx(6 * held, abs=8)


def test_kept_inputs_under_full_recomputation_by_hand():
    """Twice the layers' inputs for twice the tokens: what else grows is one layer and the head."""
    config, shape = planned("configs/models/qwen2.5-7b/8xh100.yaml", "trainer.micro_batch_size=1")
    (one,) = trainer_memory(config, shape)
    config.trainer.micro_batch_size = 2
    (two,) = trainer_memory(config, shape)
    inputs = 28 * 8192 * 3584 * 2 // 4
    layer = 8192 * 2 * (4 * 3584 + 3 * 3584 + 3 * 512 + 5 * 18944) // 4 + 8192 * 2 * 4 * 128
    norm_and_hidden = 2 * (8192 * 3584 // 4 + 8191 * 3584)
    assert two.activations - one.activations == pytest.approx(inputs + layer + norm_and_hidden)


def test_engine_by_hand():
    config, shape = planned("configs/models/qwen2.5-7b/8xh100.yaml")
    engine = engine_memory(config, shape, load_hardware("h100"))
    assert engine.weights == 2 * shape.num_parameters
    assert engine.kv_bytes_per_token == 2 * 28 * 4 * 128 * 2
    left = 0.5 * 79.6 * GIB - engine.weights - 2 * GIB
    assert engine.kv_tokens == left // engine.kv_bytes_per_token
    config.rollout.quantization = "int4"
    linear = 28 * (2 * 3584 * 3584 + 2 * 512 * 3584 + 3 * 3584 * 18944)
    rest = shape.num_parameters - linear
    assert engine_weights(config, shape) == pytest.approx(linear * (0.5 + 2 / 128) + 2 * rest)


def test_traffic_by_hand():
    config, shape = planned("configs/models/qwen2.5-72b/64xh100.yaml")
    traffic = update_traffic(config, shape, stage=0)
    states = 512 * 8192 * 8192 * 2  # micro-batches x tokens x hidden size x bytes
    # Ten layers with an attention and an MLP each: two forward passes and a backward pass.
    assert traffic.nbytes["tp", "all_gather"] == (20 * 4 + 1) * states
    assert traffic.nbytes["tp", "reduce_scatter"] == (20 * 3 + 1) * states
    # Two chunks of the stage, of which the first gets no input and sends no gradient back.
    assert traffic.nbytes["pp", "send"] == 3 * states // 8
    assert step_traffic(config, shape).sent("pp") == 8 * 3 * states / 8 + 8 * 2 * states / 8


def test_flops_of_a_dense_model_by_hand():
    config, shape = planned("configs/models/qwen2.5-7b/8xh100.yaml")
    config.model.recompute_granularity = "none"
    config.logging.clean_mismatch_interval = 0
    tokens = 128 * 8 * 8192
    weights = shape.num_parameters - 152064 * 3584
    attention = 28 * 2 * 2 * 28 * 128 * 4096
    assert training_flops(config, shape) == 3 * tokens * (2 * weights + attention)
    config.model.recompute_granularity = "full"
    assert training_flops(config, shape) == 4 * tokens * (2 * weights + attention)


def test_experts_are_divided_over_their_own_ranks():
    config, shape = planned(CANNOT_SAMPLE)
    for held in held_by_stage(config, shape):
        assert held.expert == 47 * 128 * 3 * 4096 * 1536 // 32
        assert (held.dp, held.expert_dp) == (32, 4)


def test_nearest_fit_is_a_fit():
    hardware = load_hardware("h100")
    config, shape = planned("configs/models/qwen2.5-7b/8xh100.yaml")
    config.model.tensor_model_parallel_size, config.model.sequence_parallel = 1, False
    config.model.recompute_granularity = "none"
    assert problems(config, shape, hardware)
    overrides = nearest_fit(config, shape, hardware)
    assert overrides
    mended, _ = planned(
        "configs/models/qwen2.5-7b/8xh100.yaml",
        "model.tensor_model_parallel_size=1",
        "model.sequence_parallel=false",
        "model.recompute_granularity=none",
        *overrides,
    )
    assert not problems(mended, shape, hardware)


@pytest.mark.parametrize(
    "path, end",
    [
        ("configs/models/qwen2.5-7b/8xh100.yaml", "It fits."),
        ("configs/models/qwen2.5-72b/64xh100.yaml", "It fits."),
        (CANNOT_SAMPLE, "No layout of it on so many GPUs fits."),
    ],
)
def test_it_prints_tables(path, end, capsys):
    assert main(["plan", path]) == (0 if end == "It fits." else 1)
    text = capsys.readouterr().out
    for heading in ("Memory of a training rank", "Rollout engines", "Sent by a rank", "Seconds"):
        assert heading in text
    assert text.splitlines()[-1] == end
    assert max(len(line) for line in text.splitlines() if "needs" not in line) <= 100


def test_more_gpus_than_the_file_says(capsys):
    assert main(["plan", "configs/models/qwen2.5-7b/8xh100.yaml", "--gpus", "16"]) == 0
    assert "16 x H100" in capsys.readouterr().out
    assert main(["plan", "configs/models/qwen2.5-7b/8xh100.yaml", "--gpus", "6"]) == 1
    assert "runtime.world_size=6" in capsys.readouterr().out


def test_mistakes_are_one_sentence(tmp_path, capsys):
    path = "configs/models/qwen2.5-7b/8xh100.yaml"
    broken = tmp_path / "slow.yaml"
    known = Path(load_hardware.__code__.co_filename).with_name("h100.yaml")
    shutil.copy(known, broken)
    broken.write_text(broken.read_text().replace("hbm_gb_s: 3350", "hbm_gb_s: fast"))
    for arguments, words in (
        (["--gpus", "0"], "--gpus 0"),
        (["--hardware", "abacus"], "--hardware abacus"),
        (["--hardware", str(tmp_path / "none.yaml")], "there is no such file"),
        (["--hardware", str(broken)], "hbm_gb_s"),
        (["model.path=/nowhere"], "model.path=/nowhere"),
        (["trainer.lr_=1"], "trainer.lr"),
    ):
        assert main(["plan", path, *arguments]) == 2
        output = capsys.readouterr()
        assert words in output.err and output.err.count("\n") == 1 and not output.out
