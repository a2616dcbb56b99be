"""`alp-megatron compare`."""

from argparse import Namespace

from alp_megatron.errors import RunError, UserError
from alp_megatron.studies.compare.config import load_comparison, split_overrides
from alp_megatron.studies.compare.run import (
    check_directory,
    due,
    parallel_runs,
    run_due,
    write_results,
)
from alp_megatron.studies.compare.trials import plan


def compare(arguments: Namespace) -> int:
    """Check every run, run what has not finished, then tabulate and draw what has.

    Where runs failed, the others are tabulated before the failure is reported.
    """
    if arguments.parallel is not None and arguments.parallel < 1:
        raise UserError(f"--parallel is {arguments.parallel}: give 1 or more.")
    of_runs, own = split_overrides(arguments.overrides)
    chosen = arguments.methods, arguments.mismatch, arguments.seeds
    comparison = load_comparison(arguments.config, own, *chosen)
    trials = plan(comparison, of_runs)
    check_directory(comparison, trials, arguments.table_only)
    if arguments.dry_run:
        waiting = due(trials)
        for trial in waiting:
            print(trial.member.name)
        if waiting:
            print(f"{parallel_runs(waiting, arguments.parallel)} at once")
        return 0
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
