import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alp_megatron import __version__
from alp_megatron.cli import COMMANDS, main, parse
from alp_megatron.config.load import config_from, flat, load_config
from alp_megatron.config.reference import keys
from alp_megatron.config.schema import Config, Fp8Config, ModelConfig
from tests.support.runs import REPO

COMMAND = Path(sys.executable).with_name("alp-megatron")


@pytest.mark.parametrize(
    "line",
    [
        "score M a.b=1 c=2 --tokens t --out o",
        "score M --tokens t --out o a.b=1 c=2",
        "score M a.b=1 --tokens t --out o c=2",
        "score --tokens t --out o M a.b=1 c=2",
    ],
)
def test_overrides_may_stand_anywhere(line):
    arguments = parse(line.split())
    assert arguments.model_dir == "M" and arguments.overrides == ["a.b=1", "c=2"]


def test_overrides_after_an_option():
    arguments = parse(["train", "c.yaml", "--resume", "trainer.steps=3"])
    assert arguments.resume and arguments.overrides == ["trainer.steps=3"]


@pytest.mark.parametrize(
    "line", ["train c.yaml --resum3", "train c.yaml --resume stray", "doctor a=1", "report d --x=1"]
)
def test_strays_are_refused(line, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(line.split())
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_whoever_reads_may_leave(capfd):
    reader, writer = os.pipe()
    os.close(reader)
    for buffering in ("", "1"):
        done = subprocess.run(
            [COMMAND, "plan", REPO / "configs/models/qwen2.5-7b/8xh100.yaml"],
            env=os.environ | {"PYTHONUNBUFFERED": buffering},
            stdout=writer,
        )
        assert done.returncode == 128 + signal.SIGPIPE
    os.close(writer)
    assert capfd.readouterr().err == ""


def test_the_module_is_the_command_and_imports_little():
    code = (
        "import sys; from alp_megatron.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and "doctor" in done.stdout
    words = [sys.executable, "-m", "alp_megatron", "--version"]
    version = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert version == f"ALP-Megatron {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_arguments_and_a_function(name, capsys):
    with pytest.raises(SystemExit) as caught:
        parse([name, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: alp-megatron {name} ")


def test_a_dry_run_prints_what_would_run_and_writes_nothing(tmp_path, capsys):
    words = ["train", str(REPO / "configs/quickstart.yaml"), "--dry-run"]
    model = f"model.path={REPO / 'configs/models/arithmetic'}"
    assert main([*words, model, f"run_dir={tmp_path / 'run'}", "trainer.steps=7"]) == 0
    printed = capsys.readouterr().out
    assert "# 2 processes: TP 2, PP 1, DP 1" in printed and "# 7 steps of 32 prompts" in printed
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "again.yaml").write_text(printed)
    assert load_config(tmp_path / "again.yaml").trainer.steps == 7
    assert main([*words, model, f"run_dir={tmp_path}"]) == 2
    assert "is not empty: continue that run with --resume" in capsys.readouterr().err
    assert main([*words, model, "trainer.global_batch_size=7"]) == 2
    assert "trainer.global_batch_size=7" in capsys.readouterr().err


def test_config_tells_of_every_key_and_of_those_below_one(capsys):
    assert main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.partition("  (")[0] for line in lines if not line.startswith(" ")}
    tree = flat(Config(model=ModelConfig(path="m", fp8=Fp8Config())).model_dump())
    assert told == {*tree, "model.fp8"}
    assert all(len(line) <= 100 for line in lines if line.startswith(" "))
    assert main(["config", "trainer"]) == 0
    printed = capsys.readouterr().out
    assert "trainer.lr  (number, >= 0; default 1e-05)\n    learning rate" in printed
    assert "rollout.engine" not in printed and "trainer.steps" in printed


def test_defaults_that_config_prints_are_the_defaults():
    given = [f"{key.name}={key.default}" for key in keys() if key.default is not None]
    plain = config_from({}, ["model.path=m"])
    told = config_from({}, ["model.path=m", *(g for g in given if "model.fp8." not in g)])
    assert told == plain


def test_config_prints_the_values_of_a_file(capsys):
    words = ["config", str(REPO / "configs/quickstart.yaml"), "trainer.lr=3e-3"]
    assert main(words) == 0
    assert "\n  lr: 0.003\n" in capsys.readouterr().out
    assert main(["config", "trainr.lr"]) == 2
    assert "did you mean trainer.lr" in capsys.readouterr().err
    assert main(["config", "trainer.lr=1"]) == 2
    assert "name one before it" in capsys.readouterr().err
