"""Prompts from JSONL or parquet files with the columns that RL data sets use."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alp_megatron.errors import UserError


@dataclass(frozen=True)
class PromptItem:
    """One prompt as token ids, and what its responses are scored against."""

    prompt_ids: list[int]
    ground_truth: str
    data_source: str
    extra_info: dict[str, Any] = field(default_factory=dict)


def read_items(path: str | Path, tokenizer, max_prompt_tokens: int) -> list[PromptItem]:
    """Reads a file with the columns `prompt` (chat messages), `data_source`,
    `reward_model.ground_truth` and, if there is one, `extra_info`.

    Raises:
        UserError: naming file, line (parquet: row, from 1) and what is wrong.
    """
    path = Path(path)
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)
    items = [_item(row, where, tokenizer, max_prompt_tokens) for where, row in rows]
    if not items:
        raise UserError(f"{path}: holds no prompts.")
    return items


def tokenize_prompt(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                if not line.strip():
                    continue
                try:
                    yield where, json.loads(line)
                except ValueError as error:  # also UnicodeDecodeError
                    raise UserError(f"{where}: not a line of JSON: {error}.") from error
                except RecursionError as error:
                    raise UserError(f"{where}: nested too deeply.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.ParquetFile(path).read().to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {str(error).rstrip('.')}.") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}:{number}", row


def _item(row: Any, where: str, tokenizer, max_prompt_tokens: int) -> PromptItem:
    if not isinstance(row, dict):
        raise UserError(f"{where}: is not an object with the columns prompt and reward_model.")
    messages = _messages(row.get("prompt"), where)
    source = row.get("data_source")
    if not isinstance(source, str):
        raise UserError(f"{where}: data_source is missing; it must be a string.")
    reward_model = row.get("reward_model")
    truth = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    if not isinstance(truth, str | int | float) or isinstance(truth, bool):
        raise UserError(f"{where}: reward_model.ground_truth must be a string or a number.")
    extra = row.get("extra_info") or {}
    if not isinstance(extra, dict):
        raise UserError(f"{where}: extra_info must be an object.")
    try:
        prompt_ids = tokenize_prompt(tokenizer, messages)
    except Exception as error:  # a chat template refuses messages with an error of its own choice
        raise UserError(f"{where}: the chat template refuses the prompt: {error}.") from error
    if len(prompt_ids) > max_prompt_tokens:
        raise UserError(
            f"{where}: the prompt has {len(prompt_ids)} tokens, but rollout.max_model_len minus "
            f"rollout.max_new_tokens leaves {max_prompt_tokens}: raise the one, lower the other "
            "or drop the line."
        )
    return PromptItem(prompt_ids, str(truth), source, extra)


def _messages(prompt: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(prompt, list) or not prompt:
        raise UserError(f"{where}: prompt is missing; it must be a list of chat messages.")
    for message in prompt:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise UserError(f"{where}: every message of prompt needs a role and a content.")
    return [{"role": message["role"], "content": message["content"]} for message in prompt]
