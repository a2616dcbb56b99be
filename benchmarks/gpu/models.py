"""The models that are measured: real widths, random weights."""

import random
import tempfile
from functools import cache

from alp_megatron.config.load import config_from
from alp_megatron.config.schema import Config
from alp_megatron.data.trajectory import Trajectory

SHAPES: dict[str, dict] = {
    # Weights large enough for attention to be sharp.
    "tiny": dict(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        initializer_range=0.1,
    ),
    "0.5B": dict(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
    ),
    # The width of Qwen2.5-7B, four of its 28 layers and a part of its vocabulary.
    "7B width": dict(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=4,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=32768,
    ),
}
SAMPLES, TOKENS = 16, 1024  # of an update


@cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # removed when the process ends


@cache
def model_directory(name: str) -> str:
    """Returns a Hugging Face directory of that shape in bf16; no tensor has a trivial value."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        **SHAPES[name], tie_word_embeddings=True, max_position_embeddings=4096, eos_token_id=2
    )
    torch.manual_seed(0)
    with torch.device("cuda"), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    path = f"{_scratch().name}/{name.replace(' ', '_')}"
    model.save_pretrained(path)
    return path


def training_config(path: str, method: str, recipe: str | None) -> Config:
    """One GPU, one update of SAMPLES sequences in four micro-batches."""
    tree: dict[str, dict] = {
        "model": {"path": path, "params_dtype": "bfloat16"},
        "objective": {"method": method},
        "trainer": {"global_batch_size": SAMPLES, "micro_batch_size": SAMPLES // 4},
    }
    if recipe is not None:
        tree["model"]["fp8"] = {"recipe": recipe}
    return config_from(tree, [])


def samples(vocab_size: int) -> list[Trajectory]:
    """SAMPLES sequences of TOKENS random tokens, half of them a response."""
    rng = random.Random(0)
    half = TOKENS // 2
    return [
        Trajectory(
            sample_id=index,
            group_id=index // 8,
            prompt_ids=[rng.randrange(vocab_size) for _ in range(half)],
            response_ids=[rng.randrange(vocab_size) for _ in range(half)],
            loss_mask=[1] * half,
            rollout_logprobs=[rng.uniform(-12, -10) for _ in range(half)],
            policy_version=0,
            advantage=rng.gauss(0, 1),
        )
        for index in range(SAMPLES)
    ]


def flops_of_an_update(name: str) -> float:
    """Of the model alone, without recomputation: 6 for each token and weight that multiplies it,
    12 for each layer, token, channel and token before it (halved: attention is causal)."""
    s = SHAPES[name]
    head = s["hidden_size"] // s["num_attention_heads"]
    attention = (2 * s["num_attention_heads"] + 2 * s["num_key_value_heads"]) * head
    layer = s["hidden_size"] * (attention + 3 * s["intermediate_size"])
    weights = s["num_hidden_layers"] * layer + s["vocab_size"] * s["hidden_size"]
    scores = s["num_hidden_layers"] * s["hidden_size"] * TOKENS / 2
    return SAMPLES * TOKENS * (6 * weights + 12 * scores)
