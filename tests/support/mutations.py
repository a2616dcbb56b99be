"""Tries the faults made by hand, each of which the default tests must catch.

`python -m tests.support.mutations [NAME...]` tries those of the names, or all, each in a copy of
the tree: with the tests that should catch it, or with `--all` the whole default suite. It prints a
Markdown table, and exits with 1 if one is missed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.faults import FAULTS, Fault
from tests.support.runs import REPO

PACKAGE = REPO / "alp_megatron"
LEFT_OUT = (".git", ".venv", "runs", "__pycache__")


def places(fault: Fault) -> list[Path]:
    """The files that hold the fault's piece of source, each as often as it does."""
    found = ((path, path.read_text().count(fault.find)) for path in PACKAGE.rglob("*.py"))
    return [path for path, count in found for _ in range(count)]


def try_out(fault: Fault, whole_suite: bool) -> tuple[str, float]:
    """Returns the name of the test that caught the fault, '' if none did, and the seconds."""
    with tempfile.TemporaryDirectory() as directory:
        tree = shutil.copytree(
            REPO, Path(directory) / "tree", ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True
        )
        (path,) = places(fault)
        copy = tree / path.relative_to(REPO)
        copy.write_text(copy.read_text().replace(fault.find, fault.replace))
        files = [f"tests/{name}" for name in fault.tests]
        if whole_suite:  # but for the test that the list is still of this source
            files = ["tests", "--ignore=tests/repository/test_mutations.py"]
        # The summary names what failed: a second -q, beside pyproject.toml's, would leave it out.
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", "-rfE", *files]
        started = time.monotonic()
        done = subprocess.run(
            [*command, "-m", "not slow and not gpu and not slurm"],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    seconds = time.monotonic() - started
    if done.returncode == 0:
        return "", seconds
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not found:
        raise RuntimeError(f"{fault.name}: pytest ended with {done.returncode}:\n{done.stdout}")
    return found[1], seconds


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--all", action="store_true", help="the whole default suite for each")
    arguments = parser.parse_args()
    chosen = [fault for fault in FAULTS if not arguments.names or fault.name in arguments.names]
    missed = 0
    print("| kind | fault | caught by | seconds |\n|---|---|---|---|")
    for fault in chosen:
        caught, seconds = try_out(fault, arguments.all)
        missed += not caught
        by = f"`{caught}`" if caught else "**missed**"
        print(f"| {fault.kind} | {fault.name} | {by} | {seconds:.0f} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
