"""A probe's directory: what it is a probe of, the rollouts, and each method's result.

probe.json            everything below as numbers; grows by a method at a time
rollouts.jsonl        the fixed samples, with rewards and advantages
tokens/METHOD.npz     TokenRatios: the tokens' log-probabilities by update
configs/METHOD.yaml   the method's whole configuration
environment.json      versions, commit and layout
figures/figure3.png
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alp_megatron import __version__
from alp_megatron.config.load import flat, load_config, resolved_yaml
from alp_megatron.config.schema import Config
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.errors import UserError
from alp_megatron.files import write_atomic
from alp_megatron.metrics.tokens import TokenRatios
from alp_megatron.runtime.machine import environment
from alp_megatron.studies.probe.setup import Probe

RECORD, ROLLOUTS = "probe.json", "rollouts.jsonl"
_OF_METHOD = ("objective", "perturbation")  # what methods may differ in


def prepare(probe: Probe) -> list[str]:
    """Makes the directory or goes on with the one there is. Returns the methods still to do.

    Raises:
        UserError: it holds something else, or a probe with other settings.
    """
    wanted = _identity(probe)
    if probe.out.exists() and not _is_empty(probe.out):
        record = read_record(probe.out)
        _check_same(probe.out, record["of"], wanted)
        for name in probe.configs.keys() & record["methods"].keys():
            settings = _settings(probe.configs[name])
            _check_same(probe.out, record["methods"][name]["settings"], settings)
    else:
        try:
            probe.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {probe.out} cannot be made: {error.strerror}.") from error
        record = {"version": __version__, "of": wanted, "rollouts": None, "methods": {}}
        _write(probe.out, record)
        made_with = json.dumps(environment(probe.config), indent=2) + "\n"
        write_atomic(probe.out / "environment.json", made_with.encode())
    for name, config in probe.configs.items():
        write_atomic(probe.out / "configs" / f"{name}.yaml", resolved_yaml(config).encode())
    return [name for name in probe.configs if name not in record["methods"]]


def read_configs(out: Path, names: list[str]) -> dict[str, Config]:
    """Returns the configurations that `prepare` wrote."""
    return {name: load_config(out / "configs" / f"{name}.yaml") for name in names}


def read_record(out: Path) -> dict:
    """Returns probe.json. Raises UserError where there is none, or none that this version reads."""
    path = out / RECORD
    if not path.is_file():
        raise UserError(f"--out {out} is there, but holds no {RECORD}: choose another --out.")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): choose another --out.") from error
    if not isinstance(record, dict) or record.get("version") != __version__:
        raise UserError(
            f"{path} was written by another version of ALP-Megatron: choose another --out."
        )
    return record


def write_rollouts(out: Path, trajectories: list[Trajectory], score: float) -> None:
    """Writes the fixed samples, then their fingerprint into probe.json.

    Args:
        score: of the evaluation before any update.
    """
    lines = "".join(json.dumps(asdict(t)) + "\n" for t in trajectories).encode()
    write_atomic(out / ROLLOUTS, lines)
    record = read_record(out)
    record["rollouts"] = {
        "sha256": hashlib.sha256(lines).hexdigest(),
        "samples": len(trajectories),
        "tokens": sum(sum(t.loss_mask) for t in trajectories),
        "reward_mean": sum(t.reward for t in trajectories) / len(trajectories),
    }
    record["start_score"] = score
    _write(out, record)


def read_rollouts(out: Path) -> list[Trajectory] | None:
    """Returns the fixed samples, or None where they have not been sampled yet.

    Raises UserError where the file is not the one whose fingerprint probe.json has.
    """
    rollouts = read_record(out)["rollouts"]
    if rollouts is None:
        return None
    path = out / ROLLOUTS
    lines = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(lines).hexdigest() != rollouts["sha256"]:
        raise UserError(f"{path} is not the file that {RECORD} names: choose another --out.")
    return [Trajectory(**json.loads(line)) for line in lines.decode().splitlines()]


def add_method(
    out: Path, name: str, config: Config, updates: list[dict], score: float, tokens: TokenRatios
) -> None:
    """Writes one method's result: its tokens first, so that what probe.json names is there."""
    (out / "tokens").mkdir(exist_ok=True)
    tokens.save(out / "tokens" / f"{name}.npz")
    record = read_record(out)
    result = {"settings": _settings(config), "final_score": score, "updates": updates}
    record["methods"][name] = result
    _write(out, record)


def read_tokens(out: Path, name: str) -> TokenRatios:
    return TokenRatios.load(out / "tokens" / f"{name}.npz")


def _write(out: Path, record: dict) -> None:
    text = json.dumps(record, indent=1, allow_nan=False)
    write_atomic(out / RECORD, (text + "\n").encode())


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _identity(probe: Probe) -> dict[str, Any]:
    """Returns all that the methods share. Where the directory lies is not part of it."""
    config = probe.config.model_dump(exclude={"run_dir", *_OF_METHOD})
    return {
        "updates": probe.updates,
        "from": None if probe.start is None else str(probe.start),
        "config": config,
    }


def _settings(config: Config) -> dict[str, Any]:
    return config.model_dump(include=set(_OF_METHOD))


def _check_same(out: Path, there: Mapping, wanted: Mapping) -> None:
    ours, theirs = flat(wanted), flat(there)
    for key in ours | theirs:
        old, new = theirs.get(key), ours.get(key)
        if old != new:
            name = {"updates": "--updates", "from": "--from"}.get(key, key.removeprefix("config."))
            raise UserError(
                f"--out {out} holds a probe with {name}={json.dumps(old)}, not "
                f"{json.dumps(new)}: choose another --out, or the same settings."
            )
