from types import SimpleNamespace

from alp_megatron.config.schema import Config, LoggingConfig, ModelConfig
from alp_megatron.metrics.recorder import read_metrics
from alp_megatron.trainer.output import Output

QUIET = LoggingConfig(tensorboard=False, wandb=False)
RANK = SimpleNamespace(device=SimpleNamespace(type="cpu"), world_size=1)


def output(run_dir, resumed_step=None):
    config = Config(model=ModelConfig(path="model"), logging=QUIET)
    return Output(run_dir, config, SimpleNamespace(chunks=[]), RANK, resumed_step)


def test_a_resumed_run_is_measured_against_its_own_first_step(tmp_path, capsys):
    made = SimpleNamespace(skipped=False, clean=None)
    first = output(tmp_path)
    first.write(0, {"grad_norm": 0.5}, [], [made])
    first.close()
    again = output(tmp_path, resumed_step=1)
    again.write(1, {"grad_norm": 40.0}, [], [made])
    again.close()
    assert "Step 2: growth of grad_norm is 80, healthy is at most 10" in capsys.readouterr().out


def test_an_unhealthy_step_is_recorded_and_told_once(tmp_path, capsys):
    written = output(tmp_path)
    skipped = SimpleNamespace(skipped=True, grad_norm=float("nan"), clean=None)
    for step in (0, 1):
        written.write(step, {"mismatch_before/k3": 5.0, "reward/std": 0.1}, [], [skipped])
    written.close()
    shown = capsys.readouterr().out
    assert shown.count("Step 1: mismatch_before/k3 is 5") == 1 and "Step 2" not in shown
    assert "1/40" in shown and "2/40" in shown
    assert shown.count("update 0 skipped: its gradient norm was nan") == 2
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]
