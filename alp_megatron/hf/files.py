"""The small files of a Hugging Face model directory: read as JSON, or copied."""

import json
import shutil
from pathlib import Path
from typing import Any

from alp_megatron.errors import UserError

COPY_AGAIN = "copy the model again"


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file. Raises UserError naming the file and the line."""
    if not path.parent.is_dir():
        raise UserError(f"model.path={path.parent} is not a directory: check the path.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: model.path must be a Hugging Face model.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}.") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON; {COPY_AGAIN}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object; {COPY_AGAIN}.")
    return value


def read_hf_config(model_dir: str | Path) -> dict[str, Any]:
    """Returns config.json as it stands. Raises UserError naming the file and the line."""
    return read_json_object(Path(model_dir) / "config.json")


def stated_dtype(hf_config: dict[str, Any]) -> str | None:
    """Returns 'bfloat16' and the like: `dtype`, which older files call `torch_dtype`."""
    return hf_config.get("dtype") or hf_config.get("torch_dtype")


_KEPT = (".json", ".txt", ".model", ".jinja", ".tiktoken")


def copy_model_files(source: Path, target: Path) -> None:
    """Copies config, generation config and tokenizer: not the weights, not their index."""
    for path in sorted(source.iterdir()):
        if path.suffix in _KEPT and "index" not in path.name:
            shutil.copy(path, target / path.name)
