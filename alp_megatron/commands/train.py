"""`alp-megatron train`."""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from alp_megatron.check.validate import check_inputs, validate
from alp_megatron.commands.arguments import add_config
from alp_megatron.config.layout import world_size
from alp_megatron.config.load import load_config, resolved_yaml
from alp_megatron.config.schema import Config
from alp_megatron.metrics.console import layout_line, work_lines
from alp_megatron.runtime.launcher import launch, under_launcher
from alp_megatron.runtime.run_dir import (
    check_run_dir,
    leave_to_first_rank,
    lock_as_first_rank,
    prepare_run_dir,
)


def add_arguments(parser: ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--dry-run", action="store_true", help="check all, print what would run, start nothing"
    )


def run(arguments: Namespace) -> int:
    """Checks everything that can be checked, then starts the processes or is one of them."""
    config, resume = load_config(arguments.config, arguments.overrides), arguments.resume
    validate(config)
    check_inputs(config)
    if arguments.dry_run:
        check_run_dir(config, resume)
        if os.environ.get("RANK", "0") == "0":
            print(_what_would_run(config), end="")
        return 0
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


def _what_would_run(config: Config) -> str:
    """Returns YAML that `train` reads back to the same run; the layout stands in comments."""
    lines = [layout_line(config, world_size(config)), *work_lines(config)]
    return "".join(f"# {line}\n" for line in lines) + resolved_yaml(config)


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
