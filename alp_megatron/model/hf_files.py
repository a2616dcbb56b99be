"""A Hugging Face model directory's config.json, in the forms of transformers 4 and 5."""

import json
from pathlib import Path


def read_hf_config(model_dir: str | Path) -> dict:
    return json.loads((Path(model_dir) / "config.json").read_text())


def rope_theta(hf: dict) -> float:
    """transformers 5 moved `rope_theta` into `rope_parameters`; both forms are read."""
    return float((hf.get("rope_parameters") or hf).get("rope_theta", 10000.0))
