"""`alp-megatron train`."""

import os
import sys
from pathlib import Path

from alp_megatron.check.validate import check_inputs, validate
from alp_megatron.config.layout import world_size
from alp_megatron.config.load import load_config
from alp_megatron.config.schema import Config
from alp_megatron.runtime.launcher import launch, under_launcher
from alp_megatron.runtime.run_dir import leave_to_first_rank, lock_as_first_rank, prepare_run_dir


def train(config_path: str, overrides: list[str], resume: bool) -> int:
    """Check everything that can be checked, then start the processes or be one of them."""
    config = load_config(config_path, overrides)
    validate(config)
    check_inputs(config)
    if not under_launcher():
        run_dir = prepare_run_dir(config, resume)
        leave_to_first_rank(run_dir)
        arguments = [str(run_dir / "config.yaml"), *(["--resume"] if resume else [])]
        code = launch(__name__, arguments, world_size(config))
        metrics = run_dir / "metrics.jsonl"
        if code == 1 and metrics.is_file() and metrics.stat().st_size:  # a step was done
            print("The run can be continued with --resume.", file=sys.stderr)
        return code
    if os.environ["RANK"] == "0":
        prepare_run_dir(config, resume)
    return _process(config, resume)


def _process(config: Config, resume: bool) -> int:
    from alp_megatron.runtime.process import run_process

    return run_process(config, _job, resume)


def _job(config: Config, rank, resume: bool) -> None:
    from alp_megatron.trainer.loop import train
    from alp_megatron.trainer.run import build_run, start_engine

    engine = start_engine(config, rank)
    run = build_run(config, rank, engine, resume)
    ended = train(run)
    if run.output and ended:
        run.output.finish(run.base_score, run.latest_score)
    run.close()


def _started_by_the_command() -> int:
    config = load_config(sys.argv[1])
    if os.environ["RANK"] == "0":
        lock_as_first_rank(Path(config.run_dir))
    return _process(config, resume="--resume" in sys.argv[2:])


if __name__ == "__main__":
    sys.exit(_started_by_the_command())
