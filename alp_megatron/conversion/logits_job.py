"""What the processes of a layout do to verify logits: Megatron's model against transformers'."""

import json
import os
import random
import sys
from pathlib import Path

from alp_megatron.config.load import load_config
from alp_megatron.config.schema import Config

LENGTHS = (2, 31, 17, 48)


def largest_difference(config: Config, rank, state_dir: str, result: str) -> None:
    """Writes the largest |difference| of a token's log-probability, in nats, to `result`."""
    from alp_megatron.conversion.megatron_model import megatron_logprobs, transformers_logprobs

    sequences = random_sequences(config.model.path)
    ours = megatron_logprobs(config, rank, state_dir, sequences)
    if rank.is_first:
        theirs = transformers_logprobs(config.model.path, sequences)
        largest = max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
        Path(result).write_text(json.dumps({"largest_difference": largest}))


def random_sequences(model_dir: str) -> list[list[int]]:
    """Draws token ids from the whole vocabulary, the same at every call."""
    from alp_megatron.hf.shape import read_model_shape

    shape, rng = read_model_shape(model_dir), random.Random(0)
    lengths = [min(n, shape.max_position_embeddings) for n in LENGTHS]
    sequences = [[rng.randrange(shape.vocab_size) for _ in range(n)] for n in lengths]
    sequences[0][-1] = shape.vocab_size - 1  # beside the padding
    return sequences


if __name__ == "__main__":
    # Transformer Engine's fp32 products are TF32 otherwise; cuBLAS reads it when it is loaded.
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    from alp_megatron.runtime.process import run_process

    sys.exit(run_process(load_config(sys.argv[1]), largest_difference, *sys.argv[2:]))
