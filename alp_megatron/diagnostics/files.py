"""Files that are whole at every moment."""

import os
from pathlib import Path

from alp_megatron.errors import UserError


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file as a whole: a reader, or a kill, sees the old one or the new one.

    Its directory is made where it is missing.

    Raises:
        UserError: the disk is full or the directory cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose another run_dir."
        ) from error
