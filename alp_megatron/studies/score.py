"""The trainer's log-probabilities of given tokens, made by processes in any layout."""

import json
import sys
import tempfile
from pathlib import Path

from alp_megatron.config.layout import world_size
from alp_megatron.config.load import load_config, resolved_yaml
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.files import write_atomic
from alp_megatron.runtime.launcher import launch


def launch_scoring(config: Config, tokens: str | Path, out: Path, *key: str) -> int:
    """Starts the processes; `key` is the noise's seed and step, if any. Returns the exit code."""
    with tempfile.TemporaryDirectory() as directory:
        config_path = Path(directory) / "config.yaml"
        config_path.write_text(resolved_yaml(config))
        arguments = [str(config_path), str(tokens), str(out), *key]
        return launch(__name__, arguments, world_size(config))


def read_token_lines(path: Path, vocab_size: int) -> list[dict]:
    """Returns the lines of a tokens file. Raises UserError naming file and line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--tokens {path} cannot be read: {error}.") from None
    records, seen = [], set()
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            raise UserError(f'{where} is not JSON: write {{"sample_id", "input_ids"}}.') from None
        if not isinstance(record, dict) or not _is_sample_id(record.get("sample_id")):
            raise UserError(f"{where}: sample_id must be an integer from 0 up to 2**63 - 1.")
        ids = record.get("input_ids")
        if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
            raise UserError(f"{where}: input_ids must be a list of one or more integers.")
        if not all(0 <= i < vocab_size for i in ids):
            raise UserError(
                f"{where}: input_ids must lie in the vocabulary, 0 to {vocab_size - 1}."
            )
        if record["sample_id"] in seen:
            raise UserError(
                f"{where}: sample_id {record['sample_id']} stands twice; make it unique."
            )
        seen.add(record["sample_id"])
        records.append(record)
    if not records:
        raise UserError(f"--tokens {path} is empty: give at least one line.")
    return records


def _is_sample_id(value) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _job(config: Config, rank, tokens: str, out: str, seed: int | None, step: int) -> None:
    from alp_megatron.data.microbatch import Sequence
    from alp_megatron.learner.learner import Learner, token_logprobs
    from alp_megatron.perturbation import NoiseKey

    learner = Learner(config, rank.device, training=False)
    records = read_token_lines(Path(tokens), learner.policy_config.vocab_size)
    sequences = [Sequence(r["sample_id"], r["input_ids"], first_predicted=1) for r in records]
    key = None if seed is None else NoiseKey(seed, step, update=0)
    logprobs = token_logprobs(learner, sequences, config.rollout.temperature, key)
    if rank.is_first:
        lines = [
            json.dumps(
                {"sample_id": s.sample_id, "logprobs": logprobs[s.sample_id].double().tolist()}
            )
            for s in sequences
        ]
        write_atomic(Path(out), ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    from alp_megatron.runtime.process import run_process

    config_path, tokens, out, *key = sys.argv[1:]
    seed, step = (int(key[0]), int(key[1])) if key else (None, 0)
    sys.exit(run_process(load_config(config_path), _job, tokens, out, seed, step))
