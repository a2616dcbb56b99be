from types import SimpleNamespace

from alp_megatron.config.schema import Config, LoggingConfig, ModelConfig
from alp_megatron.diagnostics.metrics_file import read_metrics
from alp_megatron.trainer.output import Output


def test_an_unhealthy_step_is_recorded_and_told_once(tmp_path, capsys):
    quiet = LoggingConfig(tensorboard=False, wandb=False)
    config = Config(model=ModelConfig(path="model"), logging=quiet)
    rank = SimpleNamespace(device=SimpleNamespace(type="cpu"), world_size=1)
    output = Output(tmp_path, config, SimpleNamespace(chunks=[]), rank, None)
    skipped = SimpleNamespace(skipped=True, grad_norm=float("nan"), clean=None)
    for step in (0, 1):
        output.write(step, {"mismatch/k3": 5.0, "reward/std": 0.1}, [], [skipped])
    output.close()
    shown = capsys.readouterr().out
    assert shown.count("Step 1: mismatch/k3 is 5") == 1 and "Step 2" not in shown
    assert "1/40" in shown and "2/40" in shown
    assert shown.count("update 0 skipped: its gradient norm was nan") == 2
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]
