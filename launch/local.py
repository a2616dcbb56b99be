"""The members of a sweep on this machine, one after the other."""

import fcntl
import subprocess
import sys
from pathlib import Path

from alp_megatron.config.run_dir import LAUNCH_DIR
from alp_megatron.errors import RunError, UserError
from launch.manifest import Member
from launch.status import write_status


def run_members(root: Path, members: list[Member]) -> int:
    """Runs or resumes each; one that fails does not end the others.

    Raises:
        UserError: another process runs members of this sweep.
        RunError: some failed; they are named.
    """
    failed = []
    with open(root / ".local.lock", "w") as lock:  # Linux frees it however this process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"sweep_dir={root}: another process runs this sweep; wait for its end."
            ) from None
        for member in members:
            print(f"{member.index:04d} {member.name} ...", flush=True)
            code = _run(member.run_dir(root))
            print(f"{member.index:04d} {'finished' if code == 0 else f'failed ({code})'}")
            if code:
                failed.append(member)
    if failed:
        names = ", ".join(f"'{member.name}'" for member in failed)
        raise RunError(
            f"{len(failed)} of {len(members)} members failed: {names}; what each said is in "
            f"{root}/NNNN/{LAUNCH_DIR}/logs/local.log."
        )
    return 0


def _run(run_dir: Path) -> int:
    """The exit code of one member; its output goes to launch/logs/local.log."""
    launch = run_dir / LAUNCH_DIR
    command = [sys.executable, "-m", "alp_megatron.cli", "train", str(launch / "config.yaml")]
    if (run_dir / "config.yaml").is_file():
        command.append("--resume")
    for leftover in ("stop", "stopped"):
        (run_dir / leftover).unlink(missing_ok=True)
    write_status(run_dir, "running")
    with open(launch / "logs" / "local.log", "a") as log:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode
    ended = "stopped" if (run_dir / "stopped").exists() else "finished"
    write_status(run_dir, "failed" if code else ended, exit_code=code)
    return code
