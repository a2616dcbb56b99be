"""A quantised engine behind HTTP computes what the one in its own process does."""

from dataclasses import replace

import pytest
import torch

from alp_megatron.rollout.engine import EngineError
from alp_megatron.rollout.server.engine import ServerEngine
from alp_megatron.rollout.server.launch import ServerProcess
from alp_megatron.rollout.vllm.engine import VllmEngine
from alp_megatron.weights.quantize.scheme import scheme_of_model
from alp_megatron.weights.quantize.stream import quantized
from alp_megatron.weights.transport.memory import SharedMemory
from tests.support.models import TINY, make_model, weights_of
from tests.support.servers import settings_of

SEQUENCES = [[2, 3, 4, 9, 11], [(5 * i) % 64 for i in range(48)]]


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_equals_the_engine_in_its_own_process(tmp_path, quantization):
    model = make_model(tmp_path / "model", TINY)
    settings = replace(settings_of(model), quantization=quantization)
    scheme = scheme_of_model(model, quantization, ())

    def start(index: int) -> ServerProcess:
        return ServerProcess(settings, "shared_memory", tmp_path / "server.log")

    def codes():
        return quantized(weights_of(model).items(), scheme)

    engine = VllmEngine(settings, tmp_path / "vllm.log")
    server = ServerEngine(settings, SharedMemory(), "shared_memory", start, 1, urls=[])
    with engine, server:
        with pytest.raises(EngineError, match="not whole"):
            server.score(SEQUENCES)
        received = server.update_weights(codes(), version=1, digests=True)
        assert received == engine.update_weights(codes(), version=1, digests=True)
        here, there = (torch.tensor(sum(e.score(SEQUENCES), [])) for e in (engine, server))
        assert (here - there).abs().max() < 1e-4
