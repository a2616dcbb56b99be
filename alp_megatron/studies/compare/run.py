"""A comparison from its first run to its table and figures."""

from pathlib import Path

from alp_megatron.errors import UserError
from alp_megatron.launch.local import run_members, runs_at_once
from alp_megatron.launch.members import read_manifest, write_manifest
from alp_megatron.launch.run_config import write_run_config
from alp_megatron.launch.status import read_status
from alp_megatron.studies.compare.config import ComparisonConfig
from alp_megatron.studies.compare.outcomes import read_outcome
from alp_megatron.studies.compare.trials import Trial, check_definitions, check_runs, write_record


def check_directory(comparison: ComparisonConfig, trials: list[Trial], table_only: bool) -> None:
    """Raises UserError where compare_dir holds something that is not of this comparison."""
    check_definitions(comparison)
    check_runs(trials, table_only)


def due(trials: list[Trial]) -> list[Trial]:
    """Those that have not finished."""
    return [trial for trial in trials if read_status(trial.run_dir, {})["state"] != "finished"]


def parallel_runs(trials: list[Trial], given: int | None) -> int:
    """How many of them run at once: `given`, or as many as the cores hold."""
    return given or runs_at_once(trial.config for trial in trials)


def run_due(comparison: ComparisonConfig, trials: list[Trial], parallel: int | None) -> None:
    """Runs, or resumes, what has not finished. RunError where some failed."""
    root = Path(comparison.compare_dir)
    waiting = due(trials)
    write_manifest(root, read_manifest(root), [trial.member for trial in trials])
    write_record(comparison)
    for trial in waiting:
        begun = (trial.run_dir / "config.yaml").is_file()
        write_run_config(trial.config, resume=begun)
    print(f"{root}: {len(trials)} runs, {len(trials) - len(waiting)} finished", end="")
    if not waiting:
        print()
        return
    at_once = parallel_runs(waiting, parallel)
    print(f", {len(waiting)} to run, {at_once} at once", flush=True)
    run_members(root, [trial.member for trial in waiting], at_once)


def write_results(comparison: ComparisonConfig, trials: list[Trial]) -> str:
    """Writes the documents and the figures of what has finished. Returns the Markdown text.

    Raises:
        UserError: nothing has finished, or a file is damaged.
    """
    from alp_megatron.studies.compare.document import Results, markdown, write_documents
    from alp_megatron.studies.compare.figures import write_figures
    from alp_megatron.studies.compare.outcomes import rows

    found = [(trial, read_outcome(trial, comparison)) for trial in trials]
    finished = [(trial, outcome) for trial, outcome in found if outcome]
    if not finished:
        raise UserError(
            f"compare_dir={comparison.compare_dir} holds no finished run of this comparison: run "
            "it without --table-only."
        )
    unfinished = [trial for trial, outcome in found if not outcome]
    results = Results(comparison, finished, unfinished, rows(finished))
    write_documents(results)
    write_figures(Path(comparison.compare_dir) / "figures", [trial for trial, _ in finished])
    return markdown(results)
