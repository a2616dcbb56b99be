"""`python -m tests.support.quantized_engines DIRECTORY CASE...`: engines, updated and fresh.

Prints one JSON object {case: {before, after, again, fresh, sent, received}}: scores of SEQUENCES by
an engine that was given the old weights and then the new ones, twice; by an engine started from
the exported quantised checkpoint; fingerprints of what was sent to the first and received there.
One process for all: importing vLLM takes most of a start.
"""

import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from alp_megatron.rollout.settings import EngineSettings
from alp_megatron.weights.hf_model import write_model
from alp_megatron.weights.quantize.scheme import quantization_config, scheme_of_model
from alp_megatron.weights.quantize.stream import quantized
from alp_megatron.weights.transport import SharedBuffer, pack, unpack
from alp_megatron.weights.verify import Digests

MAX_LEN = 48
SEQUENCES = [[2, 3, 4, 9, 11], [7, 7, 8], [(5 * i) % 61 for i in range(MAX_LEN)]]

ATTENTION = ("*.q_proj", "*.k_proj", "*.v_proj")
_DENSE = dict(
    family="qwen2",
    # No multiples of 128, so that blocks at the edges and int4 groups of 32 are met.
    hidden_size=160,
    intermediate_size=384,
    num_attention_heads=5,
    num_key_value_heads=1,
    head_dim=32,
    vocab_size=61,
    num_hidden_layers=2,
)
_EXPERTS = dict(
    family="qwen3_moe",
    hidden_size=128,
    intermediate_size=128,
    moe_intermediate_size=64,
    num_experts=4,
    num_experts_per_tok=2,
    norm_topk_prob=True,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=32,
    vocab_size=61,
    num_hidden_layers=2,
)
MODELS = {
    "tied": _DENSE | dict(tie_word_embeddings=True),
    "untied": _DENSE | dict(tie_word_embeddings=False),
    "experts": _EXPERTS,
}


@dataclass(frozen=True)
class Case:
    model: str
    quantization: str
    dtype: str
    ignore: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.quantization} {self.dtype} {self.model}"


CASES = {
    case.name: case
    for case in (
        # First: the process groups of the first engine serve all, and experts need one more.
        Case("experts", "none", "bfloat16"),
        Case("experts", "int8", "float32", ("*.experts.*",)),
        Case("tied", "int8", "float32"),
        Case("untied", "int8", "bfloat16"),
        Case("tied", "fp8", "float32"),
        Case("untied", "fp8_block", "float32", ATTENTION),
        Case("tied", "int4", "float32"),
        Case("tied", "int4", "bfloat16", ("*.down_proj", "model.layers.0.*")),
    )
}


def weights(directory: Path, case: Case, which: str) -> Iterator[tuple[str, Tensor]]:
    tensors = load_file(directory / f"{case.model}-{which}" / "model.safetensors")
    return ((name, t.to(getattr(torch, case.dtype))) for name, t in tensors.items())


def settings(model_dir: Path, case: Case, **quantization) -> EngineSettings:
    return EngineSettings(
        model_dir=str(model_dir),
        device="cpu",
        dtype=case.dtype,
        max_model_len=MAX_LEN,
        cpu_kv_cache_mib=16,
        gpu_memory_utilization=0.4,
        cpu_threads=1,
        seed=0,
        **quantization,
    )


def run(directory: Path, case: Case) -> dict:
    from alp_megatron.rollout.vllm.worker import VllmWorker

    old = directory / f"{case.model}-old"
    scheme = None
    if case.quantization != "none":
        scheme = scheme_of_model(old, case.quantization, case.ignore)
    running = VllmWorker(
        settings(old, case, quantization=case.quantization, quantization_ignore=case.ignore)
    )
    buffer = SharedBuffer.create(8192)  # smaller than most tensors: they travel in pieces

    def update(which: str, version: int) -> tuple[dict, dict]:
        sent = Digests()
        stream = sent.record(quantized(weights(directory, case, which), scheme))
        received = running.update_weights(unpack(pack(stream, buffer), buffer), version, True)
        return sent.of, received

    update("old", 1)
    before = running.score(SEQUENCES)
    sent, received = update("new", 2)
    after, again = running.score(SEQUENCES), running.score(SEQUENCES)

    exported = directory / f"{case.model}-new"
    if scheme is not None:
        stream = weights(directory, case, "new")
        write_model(
            quantized(stream, scheme),
            exported,
            directory / case.name,
            getattr(torch, case.dtype),
            quantization_config=quantization_config(scheme),
        )
        exported = directory / case.name
    fresh = VllmWorker(settings(exported, case))
    KEPT.extend((running, fresh))
    return {
        "before": before,
        "after": after,
        "again": again,
        "fresh": fresh.score(SEQUENCES),
        "sent": sent,
        "received": received,
    }


# An engine that is collected takes vLLM's process groups, which all share, along.
KEPT: list = []

if __name__ == "__main__":
    gc.disable()
    directory = Path(sys.argv[1])
    print(json.dumps({name: run(directory, CASES[name]) for name in sys.argv[2:]}))
