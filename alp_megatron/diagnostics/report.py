"""report.html: one self-contained page about a run, readable offline and on a phone."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from alp_megatron.config.yaml_io import read_mapping
from alp_megatron.diagnostics.figures import PLOTS, render, scores
from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.diagnostics.health import warnings
from alp_megatron.diagnostics.metrics_file import read_metrics
from alp_megatron.errors import UserError

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 60rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
img {{ max-width: min(100%, 44rem); height: auto; }}
figure {{ margin: 0 0 2rem; }} figcaption {{ color: #555; font-size: .9rem; }}
table {{ border-collapse: collapse; }}
td, th {{ text-align: left; padding: .25rem 1.5rem .25rem 0; vertical-align: top;
         border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }}
th {{ font-weight: 600; overflow-wrap: normal; }}
pre {{ overflow-x: auto; background: #f5f5f5; padding: .75rem; font-size: .85rem; }}
.note {{ border-left: 4px solid #E69F00; padding-left: .75rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_report(run_dir: Path) -> Path:
    """Make figures/*.png and report.html from what the run directory holds.

    Needs metrics.jsonl; environment.json and config.yaml are shown where they exist.

    Returns:
        The path of the page.

    Raises:
        UserError: metrics.jsonl is missing, malformed or without a step; or no space.
    """
    metrics = run_dir / "metrics.jsonl"
    records = read_metrics(metrics)
    if not records:
        raise UserError(f"{metrics} has no finished step yet; wait for the first one.")
    environment = _read_environment(run_dir / "environment.json")
    config = run_dir / "config.yaml"

    pictures = {name: render(plot, records) for name, plot in PLOTS.items()}
    for name, png in pictures.items():
        write_atomic(run_dir / "figures" / f"{name}.png", png)

    body = [
        _table(_summary(records) | _rollout_engine(config)),
        *_notes(records),
        *(_figure(name, png) for name, png in pictures.items()),
    ]
    if environment:
        body += ["<h2>Environment</h2>", _table(dict(_flat(environment)))]
    if config.is_file():
        body += ["<h2>Configuration</h2>", f"<pre>{escape(config.read_text())}</pre>"]
    page = PAGE.format(
        title=escape(f"ALP-Megatron: {run_dir.resolve().name}"), body="\n".join(body)
    )
    write_atomic(run_dir / "report.html", page.encode())
    return run_dir / "report.html"


def _summary(records: Sequence[dict]) -> dict[str, str]:
    last = records[-1]
    rows = {"Steps": str(last["step"])}
    steps, values = scores(records)
    if len(values):
        rows["Base score"] = f"{values[0]:.3f} (step {steps[0]})"
        rows["Final score"] = f"{values[-1]:.3f} (step {steps[-1]})"
        rows["Gain"] = f"{values[-1] - values[0]:+.3f}"
    shown = {
        "reward/mean": ("Last training reward", "{:.3f}"),
        "mismatch/k3": ("Last k3 to the rollout engine, clean", "{:.2e} nats/token"),
        "mismatch_perturbed/k3": ("Last k3, perturbed", "{:.2e} nats/token"),
        "alp/sigma_mean": ("Last sigma, mean", "{:.3g}"),
    }
    for key, (label, form) in shown.items():
        if key in last:
            rows[label] = form.format(last[key])
    seconds = sum(record.get("time/total", 0) for record in records)
    return rows | {"Time in steps": f"{seconds / 60:.1f} min"}


def _rollout_engine(config: Path) -> dict[str, str]:
    """What the mismatch is to: the engine's dtype, and its quantisation."""
    rollout = read_mapping(config).get("rollout", {}) if config.is_file() else {}
    if "dtype" not in rollout:
        return {}
    quantization = rollout.get("quantization", "none")
    if quantization == "none":
        return {"Rollout engine": f"{rollout['dtype']}, not quantised"}
    ignored = ", ".join(rollout["quantization_ignore"])
    text = f"{rollout['dtype']}, linear layers quantised to {quantization}"
    return {"Rollout engine": text + (f", except {ignored}" if ignored else "")}


def _notes(records: Sequence[dict]) -> list[str]:
    """One sentence for each kind of unhealthy value, at its last occurrence, with a count."""
    last: dict[str, str] = {}
    count: dict[str, int] = {}
    for record in records:
        for name, text in warnings(record).items():
            last[name] = text
            count[name] = count.get(name, 0) + 1
    return [
        f'<p class="note">{escape(text)} ({count[name]} of {len(records)} steps.)</p>'
        for name, text in last.items()
    ]


def _figure(name: str, png: bytes) -> str:
    plot = PLOTS[name]
    data = base64.b64encode(png).decode()
    return (
        f"<h2>{escape(plot.title)}</h2>\n<figure>"
        f'<img alt="{escape(plot.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def _table(rows: Mapping[str, str]) -> str:
    cells = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _read_environment(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it or restore it.") from error


def _flat(tree: Mapping, prefix: str = ""):
    """Nested mappings as (dotted name, text) pairs."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
