"""Run directories with made-up values, and a reader of the pages made of them."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from alp_megatron.config.load import config_from, resolved_yaml
from alp_megatron.metrics.keys import required_keys
from alp_megatron.metrics.tokens import TokenRatios


def write_run(path: Path, steps=12, layers=3, **extra) -> None:
    path.mkdir(exist_ok=True)
    with open(path / "metrics.jsonl", "w") as file:
        for step in range(steps):
            record = {
                key: 0.5 + 0.3 * math.sin(step + i) for i, key in enumerate(required_keys(layers))
            }
            done = (step + 1) // 5
            record |= {"step": step, "eval/step": done * 5, "eval/score": 0.3 + done / 10}
            file.write(json.dumps(record | extra) + "\n")


def write_config(path: Path, *overrides: str) -> None:
    config = config_from({}, ["model.path=model", *overrides])
    (path / "config.yaml").write_text(resolved_yaml(config))


def write_envelope(path: Path, step: int, noise: float = 0.0) -> None:
    """Eight updates of 40 responses with 10 tokens each; their log ratios grow with the update."""
    rng = np.random.default_rng(step)
    update, sample_id = np.repeat(np.arange(8), 400), np.repeat(np.arange(320), 10)
    rollout = -rng.exponential(1.0, 3200)
    clean = rollout + 0.01 * (1 + update) * rng.standard_normal(3200)
    arrays = [rollout, clean, clean + noise * rng.standard_normal(3200)]
    (path / "envelopes").mkdir(exist_ok=True)
    TokenRatios(sample_id, update.astype(np.int32), *(a.astype(np.float32) for a in arrays)).save(
        path / "envelopes" / f"step_{step:06d}.npz"
    )


def overwrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they nest."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
