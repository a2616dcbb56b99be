"""A Hugging Face model directory, all but its weights."""

import json
import shutil
from pathlib import Path

_KEPT = (".json", ".txt", ".model", ".jinja", ".tiktoken")


def read_hf_config(model_dir: str | Path) -> dict:
    """config.json as it stands."""
    return json.loads((Path(model_dir) / "config.json").read_text())


def stated_dtype(hf_config: dict) -> str | None:
    """'bfloat16' and the like: `dtype`, which older files call `torch_dtype`."""
    return hf_config.get("dtype") or hf_config.get("torch_dtype")


def copy_model_files(source: Path, target: Path) -> None:
    """Copy config, generation config and tokenizer: not the weights, not their index."""
    for path in sorted(source.iterdir()):
        if path.suffix in _KEPT and "index" not in path.name:
            shutil.copy(path, target / path.name)
