"""What a person reads while the run goes: a banner, a header, one line a step.

Plain ASCII of at most 120 columns, so that it reads the same in a log file.
"""

from collections.abc import Mapping
from textwrap import fill

from alp_megatron import __version__
from alp_megatron.config.layout import model_parallel_size, num_microbatches
from alp_megatron.config.methods import METHODS
from alp_megatron.config.schema import Config, CorrectionConfig
from alp_megatron.metrics.keys import PHASES

WIDTH = 120
# Title, width, and how a record is shown; the seconds by phase follow after a bar.
COLUMNS = (
    ("reward", 7, "{reward/mean:.3f}"),
    ("score", 6, "{eval/score:.3f}"),
    ("ratio p02-p98", 14, "{ratio/p02:.3g}-{ratio/p98:.3g}"),
    ("sigma", 8, "{alp/sigma_mean:.2e}"),
    ("k3", 8, "{mismatch_before/k3:.1e}"),
)
TIMES = tuple((name, 8, f"{{time/{name}:.2f}}") for name in (*PHASES, "total"))


def header() -> str:
    """Returns the titles of `step_line`'s columns."""
    left = "  ".join(title.rjust(width) for title, width, _ in COLUMNS)
    right = "".join(title.rjust(width) for title, width, _ in TIMES)
    return f"{'step':>11}  {left}  | seconds:{right}"


def step_line(record: Mapping[str, float], total_steps: int) -> str:
    """Returns one line under the header; a metric that the record lacks shows as `-`."""

    def show(width: int, form: str) -> str:
        try:
            return form.format_map(record).rjust(width)
        except KeyError:
            return "-".rjust(width)

    left = "  ".join(show(width, form) for _, width, form in COLUMNS)
    right = "".join(show(width, form) for _, width, form in TIMES)
    step = f"{record['step']}/{total_steps}"
    return f"{step:>11}  {left}  |         {right}"


def banner(config: Config, *, model: str, device: str, world_size: int) -> str:
    """Says in a few lines what runs; `model` and `device` are short descriptions."""
    rows = {
        "model": model,
        "layout": layout_line(config, world_size),
        "device": device,
        "method": _method(config),
        "work": work_lines(config)[0],
        "run": config.run_dir,
    }
    lines = [f"ALP-Megatron {__version__}"]
    for name, value in rows.items():
        lines.append(
            fill(f"  {name:<8}{value}", WIDTH, subsequent_indent=" " * 10, break_long_words=True)
        )
    return "\n".join(lines)


def layout_line(config: Config, world_size: int) -> str:
    """Says how many processes train, and how the model and the samples are divided over them."""
    m = config.model
    replicas = world_size // model_parallel_size(config)
    text = (
        f"{world_size} process{'es' if world_size > 1 else ''}: "
        f"TP {m.tensor_model_parallel_size}, PP {m.pipeline_model_parallel_size}"
    )
    if m.virtual_pipeline_model_parallel_size:
        text += f" (VPP {m.virtual_pipeline_model_parallel_size})"
    if m.expert_model_parallel_size > 1:
        text += f", EP {m.expert_model_parallel_size}"
    return f"{text}, DP {replicas}" + (", sequence parallel" if m.sequence_parallel else "")


def work_lines(config: Config) -> list[str]:
    """Says what a run, a step of it, and an update of a step consist of; a line each."""
    r, t = config.rollout, config.trainer
    samples = r.prompts_per_step * r.samples_per_prompt
    updates = samples // t.global_batch_size
    return [
        f"{t.steps} steps of {r.prompts_per_step} prompts x {r.samples_per_prompt} samples, "
        f"{updates} updates each",
        f"{samples} samples a step, {t.global_batch_size} an update, in "
        f"{num_microbatches(config)} micro-batches of {t.micro_batch_size} on each replica",
    ]


def _method(config: Config) -> str:
    o, p = config.objective, config.perturbation
    text = f"{o.method}, {o.level} ratio in [{1 - o.eps_low:.5g}, {1 + o.eps_high:.5g}]"
    if o.dual_clip:
        text += f", dual clip {o.dual_clip:g}"
    text += _correction(o.correction)
    if METHODS[o.method].perturbed:
        learned = "learned" if p.learnable else "fixed"
        if p.target == "logits":
            return f"{text}; sigma {p.sigma0:g} on the logits only"
        end = "last" if p.layer_end is None else p.layer_end - 1
        text += f"; sigma {p.sigma0:g} ({p.sigma_mode}, {learned}), layers {p.layer_start} to {end}"
    return text


def _correction(c: CorrectionConfig) -> str:
    text = ""
    if c.weight == "truncated":
        text += f"; {c.weight_level} weight up to {c.weight_high:g}"
    elif c.weight != "none":
        what = "weight" if c.weight == "masked" else "mask"
        text += f"; {c.weight_level} {what} in [{c.weight_low or 0:g}, {c.weight_high:g}]"
    if c.reject_by:
        low, high = (f"{b:g}" if b is not None else "" for b in (c.reject_low, c.reject_high))
        text += f"; {c.reject_over} {c.reject_by} in [{low}, {high}]"
    if c.veto:
        text += f"; veto below {c.veto:g}"
    return text
