"""One record a step, to metrics.jsonl, TensorBoard and Weights & Biases."""

import math
import os
import secrets
from pathlib import Path

from alp_megatron.config.schema import LoggingConfig
from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.diagnostics.metrics_file import MetricsWriter, Record, truncate_after
from alp_megatron.errors import UserError


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
        """Record one step. Numbers go to all sinks, texts (a reason) not to TensorBoard.

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
    """A quiet run; online only where WANDB_API_KEY is set. WANDB_MODE has the last word.

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
