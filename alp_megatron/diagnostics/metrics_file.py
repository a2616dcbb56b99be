"""metrics.jsonl: one JSON object a line, whole at every moment but for the last line."""

import gzip
import json
import os
import zlib
from pathlib import Path

from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.errors import UserError

Record = dict[str, float | str]


class MetricsWriter:
    """Appends records. Each line is one write call, so a kill tears at most the last line."""

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def append(self, record: Record) -> None:
        """Raises UserError, with the file as it was before, where the disk is full."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            while line:  # a full disk shows as a short write first; the next one says why
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())  # no checkpoint may be safe before the steps it follows
        except OSError as error:
            self._file.truncate(size)
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some space and resume the run."
            ) from error

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """All records of the file, in order. A torn last line, left by a kill, is passed over.

    Where only `path`.gz is there, as with records that are kept, it is read instead.

    Raises:
        UserError: the file is missing, or a whole line of it is not a record.
    """
    lines = _content(path).split(b"\n")[:-1]  # what follows the last newline is torn or empty
    return [_parse(line, path, number) for number, line in enumerate(lines, start=1)]


def has_metrics(run_dir: Path) -> bool:
    """Whether `read_metrics(run_dir / "metrics.jsonl")` has a file to read."""
    return any((run_dir / name).is_file() for name in ("metrics.jsonl", "metrics.jsonl.gz"))


def truncate_after(path: Path, step: int) -> None:
    """Drop the records of later steps and a torn last line, atomically."""
    if path.exists():
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def _content(path: Path) -> bytes:
    if path.is_file():
        return path.read_bytes()
    packed = path.with_name(path.name + ".gz")
    if not packed.is_file():
        raise UserError(f"{path} does not exist; name the directory of a run that has started.")
    try:
        return gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{packed} is damaged ({error}): restore it.") from error


def _parse(line: bytes, path: Path, number: int) -> dict:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise UserError(
            f"{path} line {number} is not a metrics record (a JSON object with a step); "
            "delete the line."
        )
    return record
