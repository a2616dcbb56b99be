"""What a message about an engine's process that ended says."""

import signal
from pathlib import Path

_LOG_LINES = 15
_LOG_BYTES = 8192


def how_it_ended(returncode: int, log_path: Path) -> str:
    """'ended with signal 9 (SIGKILL); the last lines of ...'."""
    how = f"exit code {returncode}"
    if returncode < 0:
        how = f"signal {-returncode} ({signal.Signals(-returncode).name})"
    return f"ended with {how}; the last lines of {log_path}:\n{_last_lines(log_path)}"


def _last_lines(log_path: Path) -> str:
    with open(log_path, "rb") as log:
        log.seek(max(0, log_path.stat().st_size - _LOG_BYTES))
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:])
