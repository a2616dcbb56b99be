"""Writes metrics to metrics.jsonl, TensorBoard and wandb, and reads the file again."""

import gzip
import json
import math
import os
import secrets
import zlib
from pathlib import Path

from alp_megatron.config.schema import LoggingConfig
from alp_megatron.errors import UserError
from alp_megatron.files import write_atomic
from alp_megatron.metrics.keys import present_name

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
    """Returns all records of the file, in order, under the metrics' names of today.

    A torn last line, left by a kill, is passed over. Where only `path`.gz is there, as
    with records that are kept, it is read instead.

    Raises:
        UserError: the file is missing, or a whole line of it is not a record.
    """
    lines = _content(path).split(b"\n")[:-1]  # what follows the last newline is torn or empty
    return [_parse(line, path, number) for number, line in enumerate(lines, start=1)]


def has_metrics(run_dir: Path) -> bool:
    """Says whether `read_metrics(run_dir / "metrics.jsonl")` has a file to read."""
    return any((run_dir / name).is_file() for name in ("metrics.jsonl", "metrics.jsonl.gz"))


def truncate_after(path: Path, step: int) -> None:
    """Drops the records of later steps and a torn last line, atomically."""
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
    return {present_name(key): value for key, value in record.items()}


class Recorder:
    """Writes each step's record to all sinks. One process of a run owns it.

    Args:
        run_dir: exists; receives metrics.jsonl, tensorboard/ and wandb/.
        logging: which sinks are on.
        resume_step: the step that the run resumes from; what was recorded of later steps is
            dropped, as they are run again.
    """

    def __init__(self, run_dir: Path, logging: LoggingConfig, resume_step: int | None = None):
        metrics = run_dir / "metrics.jsonl"
        if resume_step is not None:
            truncate_after(metrics, resume_step)
        self._metrics = MetricsWriter(metrics)
        self._tensorboard = _open_tensorboard(run_dir, resume_step) if logging.tensorboard else None
        self._wandb = _open_wandb(run_dir, logging.wandb_project) if logging.wandb else None

    def write(self, step: int, record: Record) -> None:
        """Records one step. Numbers go to all sinks, texts (a reason) not to TensorBoard.

        Raises:
            RuntimeError: a value is not finite; the key is named and nothing is written.
            UserError: the disk is full.
        """
        for key, value in record.items():
            if not isinstance(value, str) and not math.isfinite(value):
                raise RuntimeError(f"metric {key} is {value} at step {step}; it must be finite.")
        assert record.get("step", step) == step
        self._metrics.append({"step": step, **record})
        if self._tensorboard:
            for key, value in record.items():
                if key != "step" and not isinstance(value, str):
                    self._tensorboard.add_scalar(key, value, step)
            self._tensorboard.flush()
        if self._wandb:
            self._wandb.log(record, step=step)

    def close(self) -> None:
        self._metrics.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def _open_tensorboard(run_dir: Path, resume_step: int | None):
    from torch.utils.tensorboard import SummaryWriter  # slow import, for one rank only

    purge = None if resume_step is None else resume_step + 1
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)


def _open_wandb(run_dir: Path, project: str):
    """Starts a quiet run; online only where WANDB_API_KEY is set. WANDB_MODE has the last word.

    Its service process watches ours and ends within a second of it, whatever ends ours. An
    unreachable server is given up after wandb's own 90 s.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    mode = os.environ.get("WANDB_MODE") or (
        "online" if os.environ.get("WANDB_API_KEY") else "offline"
    )
    # The id is the run's, so that a resumed run continues its curves.
    id_file = run_dir / "wandb" / "run_id"
    if not id_file.exists():
        write_atomic(id_file, secrets.token_hex(4).encode())
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,  # no polling of the machine beside the run
    )
    try:
        return wandb.init(
            project=project,
            name=run_dir.name,
            id=id_file.read_text(),
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=run_dir,
            settings=settings,
        )
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"wandb could not start ({reason}); set logging.wandb=false or WANDB_MODE=offline."
        ) from error
