"""Runs `alp-megatron` as a user does."""

import os
import subprocess
import sys

# The quickstart for one process, in the type that Transformer Engine's kernels take.
ONE_GPU = [
    "model.tensor_model_parallel_size=1",
    "model.sequence_parallel=false",
    "model.params_dtype=bfloat16",
    "logging.wandb=false",
    "logging.tensorboard=false",
]


def alp_megatron(*arguments: str, **environment: str) -> str:
    """Its standard output. Raises RuntimeError with the end of its errors where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "alp_megatron", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = " ".join(arguments[:2])
        raise RuntimeError(f"{words} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout
