"""Small models with random weights, made by transformers, and what transformers says of them.

A shape is a family and sizes that differ from the defaults of `make_model`. `SHAPES` are those of
every family, awkward ones, that the default tests use; `random_config` makes further ones. All of
them can be laid out over TP 1, 2 and 4, PP 2, VPP 2 and EP 2.
"""

import json
import random
from functools import lru_cache
from pathlib import Path

# Its weights are small, so that the noise of a test is, and tolerances are worth something.
SMALL: dict = dict(
    family="qwen2",
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    tie_word_embeddings=True,
    std=0.08,
)

# Of an engine's test: peaked enough that a wrong weight or temperature shows.
TINY: dict = dict(
    family="qwen2",
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=64,
    tie_word_embeddings=True,
    eos_token_id=1,
    std=0.3,
)

# Embedding rows that 2 and 4 do not divide; fewer key-value heads than TP; heads that are wider
# or narrower than hidden_size / heads; a context so short that llama3 scaling shows in it.
SHAPES: dict[str, dict] = {
    "llama tied, scaled": dict(
        family="llama",
        hidden_size=64,
        intermediate_size=92,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        vocab_size=67,
        tie_word_embeddings=True,
        rope_parameters=dict(
            rope_type="llama3",
            rope_theta=500000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=20,
        ),
    ),
    "llama with biases": dict(
        family="llama",
        hidden_size=48,
        intermediate_size=60,
        num_attention_heads=4,
        num_key_value_heads=1,
        vocab_size=63,
        attention_bias=True,
        mlp_bias=True,
    ),
    "mistral": dict(
        family="mistral",
        hidden_size=40,
        intermediate_size=52,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=6,
        vocab_size=70,
        sliding_window=None,
    ),
    "mistral tied, wide window": dict(
        family="mistral",
        hidden_size=64,
        intermediate_size=100,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=65,
        sliding_window=128,
        tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0),
    ),
    "qwen2 tied, one key-value head": dict(
        family="qwen2",
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=1,
        vocab_size=61,
        tie_word_embeddings=True,
    ),
    "qwen2": dict(
        family="qwen2",
        hidden_size=56,
        intermediate_size=68,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=66,
    ),
    "qwen3 tied": dict(
        family="qwen3",
        hidden_size=48,
        intermediate_size=76,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=61,
        tie_word_embeddings=True,
    ),
    "qwen3 one key-value head": dict(
        family="qwen3",
        hidden_size=50,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=10,
        vocab_size=69,
    ),
    "qwen3_moe": dict(
        family="qwen3_moe",
        hidden_size=48,
        intermediate_size=44,
        moe_intermediate_size=20,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=61,
    ),
    "qwen3_moe tied, plain weights": dict(
        family="qwen3_moe",
        hidden_size=40,
        intermediate_size=30,
        moe_intermediate_size=27,  # TP divides no expert
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=False,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=12,
        vocab_size=63,
        tie_word_embeddings=True,
    ),
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")


def random_config(family: str, seed: int) -> dict:
    """A valid configuration of the family, in the form of SHAPES; a function of its arguments."""
    rng = random.Random(f"{family} {seed}")
    heads = rng.choice([4, 8, 12])
    config = dict(
        family=family,
        # transformers wants a multiple of the heads in Llama models.
        hidden_size=heads * rng.randint(2, 8) if family == "llama" else 2 * rng.randint(10, 40),
        intermediate_size=4 * rng.randint(3, 30),
        num_hidden_layers=rng.choice([4, 8]),
        num_attention_heads=heads,
        num_key_value_heads=rng.choice([1, 2, 4, heads]),
        head_dim=2 * rng.randint(2, 12),
        vocab_size=rng.randint(61, 130),
        tie_word_embeddings=rng.random() < 0.5,
        rms_norm_eps=rng.choice([1e-5, 1e-6]),
        rope_parameters=dict(
            rope_type="default", rope_theta=rng.choice([100.0, 10000.0, 1000000.0])
        ),
    )
    if family == "llama":
        config["attention_bias"] = config["mlp_bias"] = rng.random() < 0.5
        if rng.random() < 0.7:
            low = rng.choice([1.0, 2.0])
            config["rope_parameters"] |= dict(
                rope_type="llama3",
                factor=rng.uniform(1.5, 32),
                low_freq_factor=low,
                high_freq_factor=low + rng.choice([1.0, 3.0]),
                original_max_position_embeddings=rng.randint(8, 64),
            )
    if family == "mistral":
        config["sliding_window"] = rng.choice([None, 128, 4096])
    if family == "qwen3_moe":
        experts = rng.choice([2, 4, 6, 8])
        config |= dict(
            moe_intermediate_size=rng.randint(5, 40),
            num_experts=experts,
            num_experts_per_tok=rng.randint(2, experts),
            norm_topk_prob=rng.random() < 0.5,
        )
    return config


def make_model(
    directory: str | Path,
    shape: dict = SMALL,
    *,
    seed: int = 0,
    dtype: str = "float32",
    **changes,
) -> str:
    """A model of the shape with these changes, saved by transformers. Returns its path.

    No tensor keeps its initial value. `std` of a shape is that of all weights; without it attention
    is sharp enough for positions to matter.
    """
    import torch
    import transformers

    defaults = dict(num_hidden_layers=4, max_position_embeddings=128, eos_token_id=2, std=None)
    sizes = defaults | shape | changes
    family, std = sizes.pop("family"), sizes.pop("std")
    name = {"qwen3_moe": "Qwen3Moe"}.get(family, family.capitalize())
    config = getattr(transformers, f"{name}Config")(**sizes, dtype=dtype)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    if std is None:
        torch.manual_seed(seed)  # else the draws go on: how FP8 rounds was measured on those
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, spread = (1.0 if "norm" in name else 0.0), std or 0.2
            if parameter.dim() > 1 and std is None:
                spread = (2.5 if "embed" in name else 1.5) / parameter.shape[-1] ** 0.5
            parameter.normal_(mean, spread)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return str(directory)


def write_transformers_4_config(directory: str | Path) -> None:
    """Rewrites config.json as transformers 4 wrote it."""
    path = Path(directory) / "config.json"
    hf = json.loads(path.read_text())
    hf["torch_dtype"] = hf.pop("dtype")
    if "num_local_experts" in hf:
        hf["num_experts"] = hf.pop("num_local_experts")
    rope = hf.pop("rope_parameters")
    hf["rope_theta"] = rope.pop("rope_theta")
    hf["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    path.write_text(json.dumps(hf, indent=2))


def weights_of(directory: str | Path) -> dict:
    """All tensors of a model in one file."""
    from safetensors.torch import load_file

    return load_file(f"{directory}/model.safetensors")


@lru_cache(maxsize=8)
def _loaded(directory: str, dtype: str):
    from transformers import AutoModelForCausalLM

    # Its default for experts, a grouped product, wants sizes that are multiples of 4.
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, experts_implementation="eager"
    )


def hf_distributions(
    directory: str | Path, tokens: list[int], temperature: float = 1.0, dtype: str = "float32"
):
    """transformers' own log_softmax(logits / T) after each token, [n, vocabulary], float64."""
    import torch

    with torch.no_grad():
        logits = _loaded(str(directory), dtype)(torch.tensor([tokens])).logits[0]
    return (logits.double() / temperature).log_softmax(-1)


def hf_logprobs(
    directory: str | Path, tokens: list[int], temperature: float = 1.0, dtype: str = "float32"
):
    """transformers' own log-probability of every token but the first, [n - 1], float64."""
    import torch

    found = hf_distributions(directory, tokens, temperature, dtype)[:-1]
    return found.gather(1, torch.tensor(tokens)[1:, None])[:, 0]
