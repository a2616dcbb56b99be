"""`alp-megatron launch results`: a sweep's members, their values and what they reached."""

import csv
from argparse import Namespace
from io import StringIO
from pathlib import Path

from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.errors import UserError
from launch.manifest import MANIFEST, Member, read_manifest
from launch.status import known_jobs, last_record, read_status

METRICS = ("eval/score", "reward/mean", "mismatch/k3", "ratio/p98")


def results(arguments: Namespace) -> int:
    """Prints the table, and writes it to results.csv in the sweep's directory."""
    root = Path(arguments.sweep_dir)
    members = read_manifest(root)
    if not members:
        raise UserError(f"{root} holds no {MANIFEST}: name the sweep_dir of a sweep.")
    rows = table(root, members)
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomic(root / "results.csv", text.getvalue().encode())
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


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
