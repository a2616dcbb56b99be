"""Small models with random weights, made by transformers."""

from pathlib import Path


def make_model(directory: Path, *, seed: int = 0, dtype: str = "float32", **changes) -> str:
    """A Qwen2 model whose biases and norms differ from their initial values. Returns its path."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = dict(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**(sizes | changes), dtype=dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.08)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return str(directory)
