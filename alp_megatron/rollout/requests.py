"""What every engine asks of vLLM, whichever way the request goes."""

from typing import Any

from alp_megatron.errors import UserError
from alp_megatron.rollout.engine import SamplingSpec


def sampling_parameters(
    sampling: SamplingSpec, prompt: list[int], max_model_len: int
) -> dict[str, Any]:
    """vLLM's SamplingParams for the samples of one prompt, without a seed."""
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
    """vLLM's SamplingParams for the log-probs of given tokens; the token sampled is dropped."""
    return {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}


def check_lengths(what: str, token_lists: list[list[int]], longest: int) -> None:
    """Raises UserError for one that is empty or too long."""
    for index, tokens in enumerate(token_lists):
        if not 1 <= len(tokens) <= longest:
            raise UserError(
                f"{what} {index} has {len(tokens)} tokens, but the rollout engine takes 1 to "
                f"{longest}: shorten it or raise rollout.max_model_len."
            )
