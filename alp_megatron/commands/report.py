"""`alp-megatron report`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run_dir", nargs="+", help="several are laid over each other")
    parser.add_argument("--out", help="the page; report.html in the run, or beside the runs")


def run(arguments: Namespace) -> int:
    """Makes the page and its figures, and prints where the page is. Raises UserError."""
    from alp_megatron.report.write import write_report

    out = Path(arguments.out) if arguments.out else None
    print(write_report([Path(run_dir) for run_dir in arguments.run_dir], out))
    return 0
