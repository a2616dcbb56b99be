"""A Hugging Face model directory's config.json as it stands."""

import json
from pathlib import Path


def read_hf_config(model_dir: str | Path) -> dict:
    return json.loads((Path(model_dir) / "config.json").read_text())
