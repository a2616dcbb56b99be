"""`alp-megatron probe`."""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from alp_megatron.check.validate import check_inputs
from alp_megatron.commands.arguments import add_config
from alp_megatron.config.layout import world_size
from alp_megatron.config.schema import Config
from alp_megatron.runtime.launcher import launch, under_launcher
from alp_megatron.studies.probe.files import prepare, read_configs, read_record
from alp_megatron.studies.probe.setup import set_up


def add_arguments(parser: ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--methods", default="bypass,alp", help="separated by commas")
    parser.add_argument("--updates", type=int, default=16, help="mini-batches of the rollouts")
    parser.add_argument("--from", dest="start", help="RUN/checkpoints/step_N; else model.path")
    parser.add_argument("--out", help="directory to make or go on with; else RUN_DIR-probe")


def run(arguments: Namespace) -> int:
    """Checks everything that can be checked, runs the methods still to do, draws the figure."""
    chosen = arguments.methods, arguments.updates, arguments.out, arguments.start
    wanted = set_up(arguments.config, arguments.overrides, *chosen)
    check_inputs(wanted.config)
    if under_launcher():
        first = os.environ["RANK"] == "0"
        if first:
            prepare(wanted)
        code = _process(wanted.out, wanted.configs, wanted.start)
        return code if code or not first else _draw(wanted.out)
    due = prepare(wanted)
    if due:
        words = [str(wanted.out), str(wanted.start or ""), *due]
        code = launch(__name__, words, world_size(wanted.config))
        if code:
            return code
    return _draw(wanted.out)


def _draw(out: Path) -> int:
    from alp_megatron.studies.probe.figure import write_figure

    record = read_record(out)
    print(f"score before the updates {record['start_score']:.3f}")
    print(write_figure(out, list(record["methods"])))
    return 0


def _process(out: Path, configs: dict[str, Config], start: Path | None) -> int:
    from alp_megatron.runtime.process import run_process

    return run_process(next(iter(configs.values())), _job, out, configs, start)


def _job(config: Config, rank, out: Path, configs: dict[str, Config], start: Path | None) -> None:
    from alp_megatron.runtime.mesh import from_first_rank
    from alp_megatron.studies.probe.job import probe_job

    done = from_first_rank(list(read_record(out)["methods"]) if rank.is_first else None)
    due = {name: own for name, own in configs.items() if name not in done}
    if due:
        probe_job(config, rank, out, due, start)


if __name__ == "__main__":
    directory, checkpoint, *names = sys.argv[1:]
    given = read_configs(Path(directory), names)
    sys.exit(_process(Path(directory), given, Path(checkpoint) if checkpoint else None))
