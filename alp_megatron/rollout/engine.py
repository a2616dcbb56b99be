"""What the trainer asks of a rollout engine."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from alp_megatron.errors import RunError


class EngineError(RunError):
    """The engine refused a request, or could not start; the message says why."""


class EngineDied(EngineError):
    """The engine's process is gone; the message has its exit status and its last log lines."""


@dataclass(frozen=True)
class SamplingSpec:
    """How to sample.

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


@dataclass(frozen=True)
class Sample:
    """One response.

    Attributes:
        response_ids: sampled token ids, the stop token included if one was sampled; length R.
        logprobs: log-probability (nats) of each of them at the sampling temperature (greedy: at
            temperature 1); length R.
        finished: a stop token was sampled; False where the response was cut at a length limit.
        policy_version: version of the weights that sampled it; 0 before the first update.
    """

    response_ids: list[int]
    logprobs: list[float]
    finished: bool
    policy_version: int


class RolloutEngine(Protocol):
    """Token ids in, token ids out. Every method raises EngineDied if the engine is gone."""

    def wait_ready(self) -> None:
        """Blocks until the engine has loaded its model. Raises EngineError if it cannot."""

    def generate(self, prompts: list[list[int]], sampling: SamplingSpec) -> list[list[Sample]]:
        """The n samples of each prompt, in the order of the prompts.

        Raises UserError for a prompt that is empty or leaves no room for a response.
        """

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        """Teacher-forced log-probs at temperature 1: element t is of token t+1, length n-1.

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
