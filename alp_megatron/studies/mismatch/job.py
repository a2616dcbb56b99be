"""Trainer precisions against rollout quantisations at equal weights, measured pair by pair."""

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np

from alp_megatron.check.fp8 import check_fp8
from alp_megatron.config.schema import Config, Fp8Config, RolloutConfig
from alp_megatron.errors import RunError, UserError
from alp_megatron.hf.shape import ModelShape, read_model_shape
from alp_megatron.studies.mismatch.table import Row, compare, write_document
from alp_megatron.studies.score import launch_scoring, read_token_lines
from alp_megatron.weights.quantize.scheme import UNQUANTIZED, Scheme, rollout_scheme

RECIPES: tuple[str, ...] = get_args(Fp8Config.model_fields["recipe"].annotation)
# Name -> type of the parameters, and the FP8 recipe if there is one.
TRAINERS: dict[str, tuple[str, str | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    **{f"fp8_{recipe}": ("bfloat16", recipe) for recipe in RECIPES},
}
DEFAULT_TRAINERS = ("float32", "bfloat16")
QUANTIZATIONS: tuple[str, ...] = get_args(RolloutConfig.model_fields["quantization"].annotation)
_STEP = 0  # the training step whose prompts are sampled


class TrainerFailed(Exception):
    """The trainer's processes ended with the exit code `code` and have said why."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


def measure(
    config: Config,
    schemes: Mapping[str, Scheme | None | str],
    trainers: Mapping[str, Config],
    tokens: Path | None,
    out: Path,
) -> list[Row]:
    """Measures every pair and writes `out` with its companions, once all pairs are through.

    Engines and trainers run one after another: memory holds one of them at a time.

    Args:
        schemes: of the rollouts; see `schemes_of`.
        trainers: name -> configuration; see `trainer_configs`.
        tokens: the sequences, one a line; None to sample them.

    Raises:
        UserError: a line of `tokens` is not one.
        TrainerFailed: the trainer's processes ended badly.
    """
    vocab_size = read_model_shape(config.model.path).vocab_size
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        records = _sample(config, scratch) if tokens is None else _read(tokens, vocab_size)
        used = scratch / "tokens.jsonl"
        used.write_text("".join(json.dumps(record) + "\n" for record in records))
        rollouts: dict[str, np.ndarray | str] = {
            q: _rollout(config, q, s, records, scratch) for q, s in schemes.items()
        }
        scores = {name: _trainer(own, name, records, used) for name, own in trainers.items()}
        if "bfloat16" in scores and any(TRAINERS[name][1] for name in scores):
            rollouts["(trainer bfloat16)"] = scores["bfloat16"]  # what FP8 alone makes
        rows = compare(scores, rollouts)
        write_document(out, config, used, _coverage(schemes), rows)
    return rows


def trainer_configs(config: Config, names: Iterable[str], shape: ModelShape) -> dict[str, Config]:
    """Returns the configuration of each precision. Raises UserError for one that cannot run."""
    found = {name: _with_precision(config, name) for name in names}
    for own in found.values():
        check_fp8(own, shape)
    return found


def _with_precision(config: Config, trainer: str) -> Config:
    own = config.model_copy(deep=True)
    own.model.params_dtype, recipe = TRAINERS[trainer]
    own.model.fp8 = None
    if recipe is not None:
        own.model.fp8 = Fp8Config.model_validate({"recipe": recipe})
    return own


def schemes_of(config: Config, quantizations: Iterable[str]) -> dict[str, Scheme | None | str]:
    """Returns each quantisation's scheme, or the sentence that says why the model has none.

    int8 holds any linear layer: what it refuses is a mistake of the user's.
    """
    rollout_scheme(_with_quantization(config, "int8"))
    found: dict[str, Scheme | None | str] = {}
    for quantization in quantizations:
        try:
            found[quantization] = rollout_scheme(_with_quantization(config, quantization))
        except UserError as error:
            found[quantization] = str(error)
    return found


def _coverage(schemes: Mapping[str, Scheme | None | str]) -> dict[str, str]:
    """Says of each quantised rollout how many of the decoder's linear weights are in codes."""
    return {
        name: f"{len(scheme.groups)} of {len(scheme.groups) + len(scheme.unfit)}"
        for name, scheme in schemes.items()
        if isinstance(scheme, Scheme)
    }


def _with_quantization(config: Config, quantization: str) -> Config:
    own = config.model_copy(deep=True)
    own.rollout.quantization = quantization
    return own


def _read(path: Path, vocab_size: int) -> list[dict]:
    records = read_token_lines(path, vocab_size)
    for record in records:
        length = record.setdefault("prompt_length", 1)
        if type(length) is not int or not 1 <= length < len(record["input_ids"]):
            raise UserError(
                f"{path}: prompt_length of sample {record['sample_id']} must be from 1 to the "
                "number of its input_ids less 1."
            )
    return records


def _sample(config: Config, scratch: Path) -> list[dict]:
    """Samples the unquantised engine's responses to the task's first training prompts."""
    from alp_megatron.hf.files import read_hf_config
    from alp_megatron.tasks.task import build_task
    from alp_megatron.trainer.driver import Driver, stop_tokens

    _say("sampling")
    task = build_task(config)
    stops = stop_tokens(config, read_hf_config(config.model.path), task.tokenizer)
    with _engine(config, UNQUANTIZED, scratch) as engine:
        trajectories = Driver(config, engine, task, stops).rollout(_STEP)
    return [
        {
            "sample_id": t.sample_id,
            "input_ids": t.prompt_ids + t.response_ids,
            "prompt_length": len(t.prompt_ids),
        }
        for t in trajectories
    ]


def _engine(config: Config, quantization: str, scratch: Path):
    from alp_megatron.rollout.settings import engine_settings
    from alp_megatron.rollout.vllm.engine import VllmEngine
    from alp_megatron.runtime.mesh import device_type

    own = _with_quantization(config, quantization)
    settings = engine_settings(own, device_type(config.runtime.device))
    return VllmEngine(settings, scratch / f"vllm-{quantization}.log")


def _rollout(
    config: Config,
    quantization: str,
    scheme: Scheme | None | str,
    records: list[dict],
    scratch: Path,
) -> np.ndarray | str:
    """Returns the engine's log-probabilities [t] of the predicted tokens, or why there are none."""
    if isinstance(scheme, str):
        return scheme
    _say(f"rollout {quantization}")
    try:
        with _engine(config, quantization, scratch) as engine:
            if scheme is not None:  # else the engine has loaded the weights itself
                _send_weights(config, scheme, engine)
            scores = engine.score([record["input_ids"] for record in records])
    except RunError as error:
        return "did not run: " + str(error).partition("\n")[0]
    flat = _predicted(records, scores)
    return flat if np.isfinite(flat).all() else "gave log-probabilities that are not finite"


def _send_weights(config: Config, scheme: Scheme, engine) -> None:
    import torch

    from alp_megatron.hf.tensors import HfTensors
    from alp_megatron.weights.quantize.stream import quantized

    tensors, dtype = HfTensors(config.model.path), getattr(torch, config.rollout.dtype)
    engine.update_weights(quantized(tensors.stream(dtype), scheme), version=0)


def _trainer(own: Config, name: str, records: list[dict], tokens: Path) -> np.ndarray:
    """Returns the trainer's log-probabilities [t] in its own layout and precision."""
    _say(f"trainer {name}")
    own.rollout.temperature = 1.0  # that of the engine's scores
    out = tokens.with_name(f"{name}.jsonl")
    code = launch_scoring(own, tokens, out)
    if code:
        raise TrainerFailed(code)
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    by_id = {record["sample_id"]: record["logprobs"] for record in scored}
    return _predicted(records, (by_id[record["sample_id"]] for record in records))


def _predicted(records: list[dict], scores: Iterable[list[float]]) -> np.ndarray:
    """Returns in one row the scores after each prompt; a sequence's begin at its second token."""
    rows = zip(records, scores, strict=True)
    return np.array([x for record, row in rows for x in row[record["prompt_length"] - 1 :]])


def _say(text: str) -> None:
    print(f"mismatch: {text}", file=sys.stderr, flush=True)
