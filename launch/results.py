"""`alp-megatron launch results`: a sweep's members, their values and what they reached."""

import csv
from argparse import Namespace
from io import StringIO
from pathlib import Path

from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.errors import UserError
from launch.manifest import MANIFEST, Member, read_manifest
from launch.status import known_jobs, last_record, read_status
from launch.sweep_config import name

METRICS = ("eval/score", "reward/mean", "mismatch/k3", "ratio/p98")


def results(arguments: Namespace) -> int:
    """Prints the table, and writes it to results.csv in the sweep's directory.

    Where members differ in nothing but the seed, their means are printed below it.
    """
    root = Path(arguments.sweep_dir)
    members = read_manifest(root)
    if not members:
        raise UserError(f"{root} holds no {MANIFEST}: name the sweep_dir of a sweep.")
    rows = table(root, members)
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomic(root / "results.csv", text.getvalue().encode())
    _print(rows)
    means = seed_means(root, members)
    if len(means) > 1:
        print()
        _print(means)
    return 0


def _print(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def table(root: Path, members: list[Member]) -> list[list[str]]:
    """A heading, then one row a member: number, its values, state, steps made, METRICS."""
    jobs = known_jobs(member.run_dir(root) for member in members)
    keys = list(dict.fromkeys(key for member in members for key in member.values))
    rows = [["member", *keys, "state", "steps", *METRICS]]
    for member in members:
        run_dir = member.run_dir(root)
        record = last_record(run_dir) or {}
        steps = str(record["step"] + 1) if record else "0"
        values = [str(member.values[key]) if key in member.values else "" for key in keys]
        metrics = [f"{record[key]:.4g}" if key in record else "" for key in METRICS]
        state = read_status(run_dir, jobs)["state"]
        rows.append([f"{member.index:04d}", *values, state, steps, *metrics])
    return rows


def seed_means(root: Path, members: list[Member]) -> list[list[str]]:
    """A heading, then a row for each set of finished members that differ in their seeds only.

    A metric is the mean of their last steps' with its 95 % bootstrap interval.
    """
    from alp_megatron.comparison.bootstrap import mean_interval

    jobs = known_jobs(member.run_dir(root) for member in members)
    groups: dict[str, list[dict]] = {}
    for member in members:
        record = last_record(member.run_dir(root))
        finished = read_status(member.run_dir(root), jobs)["state"] == "finished"
        if "seed" in member.values and record and finished:
            others = {key: value for key, value in member.values.items() if key != "seed"}
            groups.setdefault(name(others) or "all", []).append(record)
    rows = [["mean over seeds", "seeds", *METRICS]]
    for label, records in groups.items():
        if len(records) > 1:
            found = [[r[key] for r in records if key in r] for key in METRICS]
            cells = [mean_interval(values).shown(".4g") if values else "" for values in found]
            rows.append([label, str(len(records)), *cells])
    return rows
