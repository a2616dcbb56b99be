"""Says what the trainer asks of a rollout engine."""

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from alp_megatron.data.trajectory import Trajectory
from alp_megatron.errors import RunError, UserError


class EngineError(RunError):
    """Says why the engine refused a request, or could not start."""


class EngineDied(EngineError):
    """Says that the engine's process is gone, with its exit status and its last log lines."""


@dataclass(frozen=True)
class SamplingSpec:
    """Says how to sample.

    Attributes:
        n: samples per prompt.
        temperature: of the softmax; 0 is greedy decoding.
        max_new_tokens: longest response, the stop token included. Prompt and response together
            never exceed the engine's max_model_len.
        stop_token_ids: all the tokens that end a response, the model's end-of-sequence token
            among them: the engine adds none of its own.
        seed: of the sampler. The same call on the same weights gives the same samples.
    """

    n: int
    temperature: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    seed: int


class RolloutEngine(Protocol):
    """Takes and returns token ids. Every method raises EngineDied if the engine is gone."""

    def wait_ready(self) -> None:
        """Blocks until the engine has loaded its model. Raises EngineError if it cannot."""

    def generate(self, prompts: list[list[int]], sampling: SamplingSpec) -> list[list[Trajectory]]:
        """Returns the n responses to each prompt, in the order of the prompts.

        Their sample_id counts from 0 over all of them, their group_id is the prompt's place.

        Raises UserError for a prompt that is empty or leaves no room for a response.
        """

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        """Returns teacher-forced log-probs at temperature 1: element t is of token t+1, length n-1.

        Raises UserError for a sequence that is empty or longer than max_model_len.
        """

    def update_weights(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, digests: bool = False
    ) -> dict[str, str]:
        """Replaces all the weights in place, streaming them through bounded memory.

        Args:
            tensors: (Hugging Face name, tensor) of the whole checkpoint, in any order.
            version: becomes the policy_version of later samples.
            digests: return name -> digest of each tensor as it was received, else {}.

        Raises EngineError naming the tensor if one is missing, unknown, repeated or of another
        shape; the engine then refuses to generate and score until a whole update succeeds.
        """

    def close(self) -> None:
        """Ends the engine and its process; may be called again."""

    def __enter__(self) -> "RolloutEngine": ...

    def __exit__(self, *_) -> None: ...


def sampling_parameters(
    sampling: SamplingSpec, prompt: list[int], max_model_len: int
) -> dict[str, Any]:
    """Returns vLLM's SamplingParams for the samples of one prompt, without a seed."""
    return {
        "n": sampling.n,
        "temperature": sampling.temperature,
        "max_tokens": min(sampling.max_new_tokens, max_model_len - len(prompt)),
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": True,  # the model's own: stop_token_ids says it all
        "logprobs": 0,
        "detokenize": False,
    }


def scoring_parameters() -> dict[str, Any]:
    """Returns vLLM's SamplingParams that score given tokens; the token sampled is dropped."""
    return {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}


def check_lengths(what: str, token_lists: list[list[int]], longest: int) -> None:
    """Raises UserError for one that is empty or too long."""
    for index, tokens in enumerate(token_lists):
        if not 1 <= len(tokens) <= longest:
            raise UserError(
                f"{what} {index} has {len(tokens)} tokens, but the rollout engine takes 1 to "
                f"{longest}: shorten it or raise rollout.max_model_len."
            )


_LOG_LINES = 15
_LOG_BYTES = 8192


def how_it_ended(returncode: int, log_path: Path) -> str:
    """Returns 'ended with signal 9 (SIGKILL); the last lines of ...'."""
    how = f"exit code {returncode}"
    if returncode < 0:
        how = f"signal {-returncode} ({signal.Signals(-returncode).name})"
    return f"ended with {how}; the last lines of {log_path}:\n{_last_lines(log_path)}"


def _last_lines(log_path: Path) -> str:
    with open(log_path, "rb") as log:
        log.seek(max(0, log_path.stat().st_size - _LOG_BYTES))
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:])
