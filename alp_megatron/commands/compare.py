"""`alp-megatron compare`."""

from argparse import ArgumentParser, Namespace

from alp_megatron.commands.arguments import add_config
from alp_megatron.errors import RunError, UserError
from alp_megatron.studies.compare.config import load_comparison, split_overrides
from alp_megatron.studies.compare.trials import (
    check_definitions,
    check_runs,
    due,
    parallel_runs,
    run_due,
    trials_of,
)


def add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, "YAML file, as in configs/comparisons")
    parser.add_argument("--methods", help="separated by commas; those of the file else")
    parser.add_argument("--mismatch", help="some of the file's, separated by commas; all else")
    parser.add_argument("--seeds", help="as in 1,2,3; those of the file else")
    parser.add_argument("--parallel", type=int, help="runs at once; as the cores allow else")
    parser.add_argument("--dry-run", action="store_true", help="print the runs that are due")
    parser.add_argument("--table-only", action="store_true", help="of the runs that are there")


def run(arguments: Namespace) -> int:
    """Checks every run, runs what has not finished, then tabulates and draws what has.

    Where runs failed, the others are tabulated before the failure is reported.
    """
    if arguments.parallel is not None and arguments.parallel < 1:
        raise UserError(f"--parallel is {arguments.parallel}: give 1 or more.")
    of_runs, own = split_overrides(arguments.overrides)
    chosen = arguments.methods, arguments.mismatch, arguments.seeds
    comparison = load_comparison(arguments.config, own, *chosen)
    trials = trials_of(comparison, of_runs)
    check_definitions(comparison)
    check_runs(trials, arguments.table_only)
    if arguments.dry_run:
        waiting = due(trials)
        for trial in waiting:
            print(trial.member.name)
        if waiting:
            print(f"{parallel_runs(waiting, arguments.parallel)} at once")
        return 0
    from alp_megatron.studies.compare.document import write_results

    failure = None
    if not arguments.table_only:
        try:
            run_due(comparison, trials, arguments.parallel)
        except RunError as error:
            failure = error
    try:
        text = write_results(comparison, trials)
    except UserError:
        if failure is None:
            raise
        raise failure from None
    print(f"\n{text}\n{comparison.compare_dir}: comparison.md, .csv, .json, figures/")
    if failure:
        raise failure
    return 0
