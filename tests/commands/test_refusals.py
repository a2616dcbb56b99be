"""A user's mistake: exit code 2, one sentence that names it, and nothing made or changed.

All in this process; whole processes: e2e/test_bad_input.
"""

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from alp_megatron.cli import main
from tests.support.runs import BASE_MODEL, QUICKSTART, REPO
from tests.support.small_disk import fill, small_disk_at

TP = "model.tensor_model_parallel_size"


@pytest.fixture
def model(tmp_path):
    """A copy of the base model, to be spoilt."""
    return shutil.copytree(BASE_MODEL, tmp_path / "model")


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs the command in this process; nothing new may lie in tmp_path. Returns the sentence."""
    monkeypatch.chdir(REPO)

    def sentence(*arguments) -> str:
        before = tree(tmp_path)
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ")
        assert tree(tmp_path) == before
        return said.err

    return sentence


def tree(directory):
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


@pytest.fixture
def train(tmp_path, refused):
    """Refuses `train CONFIG OVERRIDES`, where the base model is used if none is named."""

    def refused_train(*overrides, config=QUICKSTART):
        return refused("train", config, f"run_dir={tmp_path}/run", *overrides)

    return refused_train


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "run.yaml: there is no such file"),
        ("model: [unclosed", "run.yaml:1:"),
        ("model:\n  path: x\n  path: y\n", "run.yaml:3: the key 'path' is given twice"),
        ("- a list\n", "run.yaml: must hold `key: value` lines"),
        ("", "run.yaml: is empty"),
        ("extends: gone.yaml\n", "gone.yaml: there is no such file"),
        ("trainer:\n  stepz: 3\n", "Unknown key trainer.stepz: did you mean trainer.steps"),
        ("trainer:\n  steps: many\n", 'trainer.steps is "many"'),
        ("trainer: 3\n", "trainer is 3"),
        ("trainer:\n  steps: 3\n", "model.path is missing"),
    ],
)
def test_config(tmp_path, train, text, expected):
    config = tmp_path / "run.yaml"
    if text is not None:
        config.write_text(text)
    assert expected in train(config=config)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([f"{TP}=3"], f"{TP}=3 does not divide"),
        (["model.pipeline_model_parallel_size=3"], "model.pipeline_model_parallel_size=3"),
        (["runtime.world_size=3"], "runtime.world_size=3"),
        (["trainer.global_batch_size=48"], "trainer.global_batch_size=48"),
        (["trainer.micro_batch_size=48"], "trainer.global_batch_size=64 is not a multiple"),
        (["rollout.max_new_tokens=64"], "rollout.max_new_tokens=64"),
        (["trainer.lr"], "'trainer.lr' is not an override"),
        (["trainer.lr=[1"], "override trainer.lr:1:"),
        (["trainer.lr=nan"], "trainer.lr is"),
        (["task.name=file"], "task.train"),
        (["model.path=gone"], "model.path=gone is not a directory"),
        (["runtime.device=cuda"], "runtime.device=cuda"),
        (["rollout.quantization=int3"], 'rollout.quantization is "int3"'),
        (["rollout.quantization=fp8_block"], "add ['*.k_proj', '*.q_proj', '*.v_proj'] to"),
    ],
)
def test_settings(train, overrides, expected):
    assert expected in train(*overrides)


def no_config(model):
    (model / "config.json").unlink()


def malformed_config(model):
    (model / "config.json").write_text('{\n "hidden_size": 128,\n oops')


def other_sizes(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))


def no_weights(model):
    (model / "model.safetensors").unlink()


def truncated(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def overlapping(model):
    path = model / "model.safetensors"
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data])
    name = "model.layers.0.input_layernorm.weight"
    start, stop = header[name]["data_offsets"]
    header[name]["data_offsets"] = [start + 8, stop + 8]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[data:])


def elsewhere(model):
    (model / "model.safetensors").rename(model.parent / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def missing_tensor(model):
    path = model / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.2.mlp.down_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def no_tokenizer(model):
    (model / "tokenizer.json").unlink()


def malformed_tokenizer(model):
    (model / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (no_config, "config.json is missing"),
        (malformed_config, "config.json:3: not valid JSON"),
        (other_sizes, "gate_proj.weight has shape [384, 128]"),
        (no_weights, "model.safetensors is missing"),
        (truncated, "model.safetensors has"),
        (overlapping, "model.safetensors: model.layers.0.input_layernorm.weight starts at byte"),
        (elsewhere, "model.safetensors.index.json: model.norm.weight is said to be in ../model"),
        (missing_tensor, "model.layers.2.mlp.down_proj.weight"),
        (no_tokenizer, "tokenizer.json is missing"),
        (malformed_tokenizer, "tokenizer.json: not a tokenizer"),
    ],
)
def test_model(train, model, spoil, expected):
    spoil(model)
    assert expected in train(f"model.path={model}")
    assert expected in train(f"model.path={model}", "--dry-run")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{not JSON", "tasks.jsonl:2: not a line of JSON"),
        ('{"prompt": "text"}', "tasks.jsonl:2: prompt is missing"),
        (
            '{"prompt": [{"role": "user", "content": "1+1"}], "data_source": "x"}',
            "tasks.jsonl:2: reward_model.ground_truth",
        ),
    ],
)
def test_task_file(tmp_path, train, line, expected):
    good = {
        "prompt": [{"role": "user", "content": "1+1"}],
        "data_source": "sums",
        "reward_model": {"ground_truth": "2"},
    }
    path = tmp_path / "tasks.jsonl"
    path.write_text(f"{json.dumps(good)}\n{line}\n")
    assert expected in train("task.name=file", f"task.train={path}", f"task.eval={path}")


@pytest.fixture
def score(tmp_path, refused):
    def refused_score(*arguments, model_dir=BASE_MODEL):
        return refused("score", model_dir, "--out", tmp_path / "out.jsonl", *arguments)

    return refused_score


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "tokens.jsonl:2 is not JSON"),
        ('{"sample_id": "a", "input_ids": [1]}', "tokens.jsonl:2: sample_id"),
        ('{"sample_id": 2, "input_ids": []}', "tokens.jsonl:2: input_ids"),
        ('{"sample_id": 2, "input_ids": [64]}', "tokens.jsonl:2: input_ids must lie in"),
        ('{"sample_id": 1, "input_ids": [3]}', "tokens.jsonl:2: sample_id 1 stands twice"),
    ],
)
def test_tokens_to_score(tmp_path, score, line, expected):
    path = tmp_path / "tokens.jsonl"
    path.write_text('{"sample_id": 1, "input_ids": [3, 4]}\n' + line + "\n")
    assert expected in score("--tokens", path)


def test_score_and_eval_of_what_is_not_there(tmp_path, score, refused):
    tokens = tmp_path / "tokens.jsonl"
    assert "tokens.jsonl" in score("--tokens", tokens)
    tokens.write_text('{"sample_id": 1, "input_ids": [3, 4]}\n')
    assert "model.path=gone is not" in score("--tokens", tokens, model_dir="gone")
    assert "sigma" in score("--tokens", tokens, "--perturb", "--sigma", "-1")
    assert "sigma" in score("--tokens", tokens, "--perturb", "--sigma", "nan")
    assert "--seed" in score("--tokens", tokens, "--perturb", "--seed", "-1")
    assert "--step" in score("--tokens", tokens, "--perturb", "--step", "-1")
    assert "out" in score("--tokens", tokens, "--out", tmp_path / "no" / "out.jsonl")
    assert "model.path=gone is not a directory" in refused("eval", "gone")


def test_report_without_metrics(tmp_path, refused):
    assert "metrics.jsonl does not exist" in refused("report", tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    assert "no finished step" in refused("report", tmp_path)


def test_warm_start_onto_something(tmp_path, refused):
    arguments = ["configs/experiments/warm_start_arithmetic.yaml", "--out", tmp_path]
    assert "exists" in refused("warm-start", *arguments)


def test_run_directory(tmp_path, train):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    sentence = train()
    assert f"run_dir={tmp_path}/run is not empty" in sentence
    assert "--resume" in sentence and "another run_dir" in sentence
    assert "no run to resume" in train("--resume")
    (tmp_path / "file").write_text("")
    assert "is a file" in train(f"run_dir={tmp_path}/file")
    assert "cannot be written" in train(f"run_dir={tmp_path}/file/run")
    assert "run_dir=/proc/run" in train("run_dir=/proc/run")


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"]])
def test_usage(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: alp-megatron" in capsys.readouterr().err


def test_a_mistake_in_the_config_costs_no_heavy_import(tmp_path):
    probe = (
        "import sys; from alp_megatron.cli import main; code = main(['train', 'gone.yaml']);"
        "heavy = {'torch', 'megatron', 'vllm', 'transformers'} & sys.modules.keys();"
        "sys.exit(code if not heavy else f'{heavy} imported')"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 2, done.stderr


@pytest.fixture
def small_disk(tmp_path):
    with small_disk_at(tmp_path / "disk", "90m") as place:
        yield place


def test_no_space_at_the_start(tmp_path, train, small_disk):
    fill(small_disk, leaving=1_000_000)
    sentence = train(f"run_dir={small_disk}/run")
    assert f"run_dir={small_disk}/run has 0.00 GB free" in sentence
