"""A run is asked to stop by a file: a signal would end vLLM and torchrun as well."""

from pathlib import Path

from alp_megatron.runtime.process_groups import from_first_rank

REQUEST = "stop"  # in the run directory: save after this step, and end
ACKNOWLEDGEMENT = "stopped"


def stop_requested(run_dir: Path) -> bool:
    """The same answer on every rank. Collective."""
    return from_first_rank((run_dir / REQUEST).exists())


def acknowledge_stop(run_dir: Path) -> None:
    """Called when the checkpoint is whole."""
    (run_dir / ACKNOWLEDGEMENT).touch()
    (run_dir / REQUEST).unlink(missing_ok=True)
