"""Compares a checkpoint's tensors with a Hugging Face directory's, bit by bit."""

import json
import random
import sys
import tempfile
from collections import defaultdict
from functools import partial
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from alp_megatron.config.layout import world_size
from alp_megatron.config.load import resolved_yaml
from alp_megatron.config.schema import Config
from alp_megatron.conversion.megatron_reader import MegatronTensors
from alp_megatron.conversion.parameters import Parameter
from alp_megatron.conversion.workers import ByteProgress, run_tasks
from alp_megatron.errors import RunError, UserError
from alp_megatron.hf.shape import ModelShape
from alp_megatron.hf.tensors import HfTensors
from alp_megatron.runtime.launcher import launch
from alp_megatron.weights.transport.buckets import bounded


def compare_tensors(
    parameters: list[Parameter],
    *,
    model_dir: Path,
    state_dir: Path,
    query_groups: int,
    head_dim: int,
    reports: Path,
) -> int:
    """Compares parameters; what differs is written to a file in `reports`. Returns the bytes.

    The tensors are read by the safetensors library, not by the code under test.
    """
    megatron, tensors = MegatronTensors(state_dir), HfTensors(model_dir)
    different: dict[str, int] = defaultdict(int)
    for parameter in parameters:
        for name, first, rows in megatron.hf_parts(parameter, query_groups, head_dim):
            # Opened anew: the pages of a mapped file count as the process's memory.
            with safe_open(tensors.file(name), framework="pt") as file:
                expected = file.get_slice(name)[first : first + len(rows)]
            different[name] += _differing(rows.to(tensors.dtype(name)), expected)
    lines = [f"{name}: {count} elements differ" for name, count in different.items() if count]
    if lines:
        (reports / f"{parameters[0].name}.txt").write_text("\n".join(lines))
    return sum(tensors.nbytes(name) for p in parameters for name in p.hf_names)


def _differing(one: Tensor, other: Tensor) -> int:
    """Counts the elements whose bits differ."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return other.numel()
    a, b = (t.contiguous().view(-1).view(torch.uint8) for t in (one, other))
    if torch.equal(a, b):  # takes no memory
        return 0
    size = one.element_size()
    return int((a.view(-1, size) != b.view(-1, size)).any(1).sum())


# Parameters up to which "auto" compares all tensors, and log-probabilities: these take both models
# in memory, in fp32.
ALL_TENSORS_UP_TO = 1.2e9
LOGPROBS_UP_TO = 0.2e9
GROUP_ELEMENTS = 2**25  # compared by one process before it takes more
LOGPROB_TOLERANCE = 1e-4  # nats


class Verification:
    """Makes the checks of a conversion.

    Args:
        mode: "full" compares every tensor bit by bit, and the log-probabilities of the Megatron
            model in its layout with transformers', both computed in fp32 whatever the weights'
            type; "auto" leaves the log-probabilities of models over 0.2 B parameters out, and
            compares a sample of the tensors over 1.2 B; "off" does nothing.
        config: its `model` is the layout of the log-probabilities.
    """

    def __init__(self, mode: str, config: Config, shape: ModelShape, parameters: list[Parameter]):
        size, full = shape.num_parameters, mode == "full"
        self._config = config
        self._off = mode == "off"
        self._logprobs = full or (mode == "auto" and size <= LOGPROBS_UP_TO)
        if self._logprobs and (lack := _lack_of_devices(config)):
            if full:
                raise UserError(f"--verify full: {lack}: use a smaller layout or --verify auto.")
            self._logprobs = False
        self._shape = shape
        self._all = full or size <= ALL_TENSORS_UP_TO
        self._parameters = parameters if self._all else _sample(parameters)

    def tensors(self, model_dir: Path, state_dir: Path, workers: int) -> None:
        """Raises RunError after naming, on stderr, each tensor that differs."""
        if self._off:
            return
        groups = bounded(self._parameters, lambda p: prod(p.shape), GROUP_ELEMENTS)
        what = "all" if self._all else "a sample of"
        progress = ByteProgress(
            f"verified {what} {len(self._parameters)} Megatron parameters bit by bit",
            self._nbytes(model_dir),
        )
        with tempfile.TemporaryDirectory() as reports:
            compare = partial(
                compare_tensors,
                model_dir=model_dir,
                state_dir=state_dir,
                query_groups=self._shape.num_key_value_heads,
                head_dim=self._shape.head_dim,
                reports=Path(reports),
            )
            run_tasks(compare, groups, workers, progress)
            failures = [line for f in sorted(Path(reports).iterdir()) for line in _lines(f)]
        if failures:
            for line in failures:
                print(f"FAILED {line}", file=sys.stderr)
            names = [line.split(":")[0] for line in failures]
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise RunError(f"{len(names)} tensors changed in the conversion: {shown}.")
        progress.finish()

    def _nbytes(self, model_dir: Path) -> int:
        tensors = HfTensors(model_dir)
        return sum(tensors.nbytes(name) for p in self._parameters for name in p.hf_names)

    def logprobs(self, model_dir: Path, state_dir: Path) -> None:
        """Compares log-probabilities. Raises RunError with the largest difference."""
        if not self._logprobs:
            if not self._off:
                print("log-probabilities not compared (--verify full: in any size)")
            return
        with tempfile.TemporaryDirectory() as directory:
            of_job = self._config.model_copy(deep=True)
            of_job.model.path, of_job.model.params_dtype = str(model_dir), "float32"
            config_path, result = Path(directory) / "config.yaml", Path(directory) / "result.json"
            config_path.write_text(resolved_yaml(of_job))
            arguments = [str(config_path), str(state_dir), str(result)]
            code = launch("alp_megatron.conversion.logits_job", arguments, world_size(of_job))
            if code != 0:
                raise RunError("the Megatron model could not be run on the new weights.")
            largest = json.loads(result.read_text())["largest_difference"]
        if not largest <= LOGPROB_TOLERANCE:  # also where it is NaN
            raise RunError(
                f"log-probabilities of Megatron and transformers differ by {largest:.1e}, more "
                f"than {LOGPROB_TOLERANCE:.0e}: the tensors are equal, so the model's config is "
                "read differently."
            )
        print(f"verified log-probabilities: they differ from transformers' by {largest:.1e}")


def _lack_of_devices(config: Config) -> str | None:
    """Says how many GPUs are missing, of which each process needs its own where there are any."""
    if not torch.cuda.is_available() or torch.cuda.device_count() >= world_size(config):
        return None
    return f"the layout takes {world_size(config)} GPUs and there are {torch.cuda.device_count()}"


def _sample(parameters: list[Parameter]) -> list[Parameter]:
    """Returns one of each kind, from layers (and experts) drawn at random, and all outside the
    layers.
    """
    rng, kinds = random.Random(0), defaultdict(list)
    for parameter in parameters:
        kinds[parameter.keys].append(parameter)
    return [rng.choice(of_kind) for of_kind in kinds.values()]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
