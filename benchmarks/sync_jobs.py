"""What the training processes do for the measure of the weight sync."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from alp_megatron.learner.learner import Learner
from alp_megatron.rollout.settings import engine_settings
from alp_megatron.rollout.vllm.engine import VllmEngine
from alp_megatron.trainer.sync import WeightSync
from alp_megatron.weights.export import WeightExport
from alp_megatron.weights.quantize.scheme import rollout_scheme
from alp_megatron.weights.quantize.stream import quantized
from alp_megatron.weights.transport import SharedBuffer, pack, unpack
from benchmarks.rounds import seconds_by_rounds


def sync_seconds(config, rank, rounds: int) -> dict:
    """Seconds of a sync, of its parts alone, and of a copy of the same bytes.

    `gather` gathers and casts, `quantize` also quantises, `transport` also packs into shared memory
    and copies out again, `sync` also loads the weights into the running vLLM.
    """
    learner = Learner(config, rank.device, training=False)
    export = WeightExport(learner.chunks, learner.hf["model_type"])
    dtype, scheme = getattr(torch, config.rollout.dtype), rollout_scheme(config)

    def stream():
        return quantized(export.stream(dtype), scheme)

    size = sum(tensor.nbytes for _, tensor in export.stream(dtype))
    sent_size = sum(tensor.nbytes for _, tensor in stream())
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    buffer = SharedBuffer.create()
    with tempfile.TemporaryDirectory() as scratch:
        engine = None
        if rank.is_first:
            engine = VllmEngine(engine_settings(config, "cpu"), Path(scratch) / "vllm.log")
            engine.wait_ready()
        sync = WeightSync(learner, export, engine)
        seconds = seconds_by_rounds(
            {
                "copy": lambda: target.copy_(source),
                "gather": lambda: _exhaust(export.stream(dtype)),
                "quantize": lambda: _exhaust(stream()),
                "transport": lambda: _exhaust(unpack(pack(stream(), buffer), buffer)),
                "sync": lambda: sync.push(version=1),
            },
            rounds,
            meet=dist.barrier,
        )
        if engine:
            engine.close()
    buffer.close()
    return {"bytes": size, "sent_bytes": sent_size, "seconds": seconds}


def _exhaust(iterator) -> None:
    for _ in iterator:
        pass
