"""A tiny random Qwen2 directory, and what Hugging Face transformers says about it."""

from functools import lru_cache

import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM


def make_model(directory, tied: bool, seed: int) -> str:
    torch.manual_seed(seed)
    config = Qwen2Config(
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
        tie_word_embeddings=tied,
        max_position_embeddings=128,
        initializer_range=0.3,  # peaked enough that a wrong weight or temperature shows
        eos_token_id=1,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # transformers starts them at 0
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    return str(directory)


def weights_of(directory: str) -> dict[str, torch.Tensor]:
    return load_file(f"{directory}/model.safetensors")


@lru_cache
def _load(directory: str, dtype: torch.dtype) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(directory, dtype=dtype)


def hf_logprobs(
    directory: str, tokens: list[int], temperature: float = 1.0, dtype=torch.float32
) -> list[float]:
    """log_softmax(logits / T) of tokens[1:], length n-1."""
    model = _load(directory, dtype)
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double() / temperature
    chosen = ids[0, 1:, None]
    return logits.log_softmax(-1).gather(-1, chosen)[:, 0].tolist()
