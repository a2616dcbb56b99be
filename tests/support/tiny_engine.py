"""The real vLLM on a tiny model. Imported by the tests and by a process of theirs alike."""

from pathlib import Path

from alp_megatron.rollout.settings import EngineSettings
from alp_megatron.rollout.vllm.engine import VllmEngine

MAX_LEN = 48
SEQUENCES = [[2, 3, 4, 9, 11], [7, 7, 8], [(5 * i) % 64 for i in range(MAX_LEN)]]


def start(model_dir: str, dtype: str, directory: Path) -> VllmEngine:
    settings = EngineSettings(
        model_dir=model_dir,
        device="cpu",
        dtype=dtype,
        max_model_len=MAX_LEN,
        cpu_kv_cache_mib=16,
        gpu_memory_utilization=0.4,
        cpu_threads=1,
        seed=0,
    )
    # A buffer smaller than the largest tensor: the updates go in pieces.
    return VllmEngine(settings, directory / "vllm.log", buffer_bytes=8192)
