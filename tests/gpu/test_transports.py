"""Weights from this process's GPU to a real vLLM server on a GPU."""

from dataclasses import replace

import pytest
import torch

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from alp_megatron.rollout.server.engine import ServerEngine  # noqa: E402
from alp_megatron.rollout.server.launch import ServerProcess  # noqa: E402
from alp_megatron.weights.verify import digest  # noqa: E402
from tests.support.models import TINY, hf_logprobs, make_model, weights_of  # noqa: E402
from tests.support.servers import settings_of  # noqa: E402

TOKENS = [2, 3, 4, 9, 11]


def transport_of(name: str):
    if name == "nccl":
        if torch.cuda.device_count() < 2:
            pytest.skip("NCCL needs a second GPU")
        from alp_megatron.weights.transport.nccl import Nccl

        return Nccl(capacity=8192), "1"
    from alp_megatron.weights.transport.memory import CudaIpc

    return CudaIpc(capacity=8192), "0"


@pytest.mark.parametrize("name", ["cuda_ipc", "nccl"])
def test_an_update_reaches_the_server(tmp_path, name):
    transport, gpu = transport_of(name)
    old = make_model(tmp_path / "old", TINY, tie_word_embeddings=False)
    new = make_model(tmp_path / "new", TINY, tie_word_embeddings=False, seed=1)
    settings = replace(settings_of(old), device="cuda", gpu_memory_utilization=0.2)

    def start(index: int) -> ServerProcess:
        return ServerProcess(settings, name, tmp_path / "vllm.log", gpu=gpu)

    with ServerEngine(settings, transport, name, start, 1, urls=[]) as engine:
        for version in (1, 2):
            weights = {key: tensor.cuda() for key, tensor in weights_of(new).items()}
            received = engine.update_weights(weights.items(), version, digests=True)
            assert received == {key: digest(tensor) for key, tensor in weights_of(new).items()}
        scores = engine.score([TOKENS])[0]
    exact = hf_logprobs(new, TOKENS)
    assert max(abs(a - b) for a, b in zip(scores, exact, strict=True)) < 2e-2
