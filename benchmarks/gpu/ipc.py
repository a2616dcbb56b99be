"""Weights to another process on the same GPU, over CUDA's inter-process handles."""

import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.ipc_receiver import receive_line, send_line
from benchmarks.gpu.part import Found, Goal

UPDATES = 8
LAYERS, ROWS, COLUMNS = 8, 18944, 3584  # an MLP matrix of a 7B model, eight times: 1.1 GB


class _Receiver:
    """A `Receivers` of one process that keeps what arrives."""

    count = 1

    def __init__(self):
        command = [sys.executable, "-m", "benchmarks.gpu.ipc_receiver"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: dict[str, Any]) -> Any:
        send_line(self._process.stdin, what)
        return receive_line(self._process.stdout)

    def connect(self, infos: list[dict[str, Any]]) -> None:
        self.ask({"connect": infos[0]})

    def receive(self, info: dict[str, Any]) -> None:
        self.ask({"receive": info})

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)


def weights_cross() -> Found:
    """Seconds and GB/s of an update, and whether every tensor's bytes are those sent."""
    from alp_megatron.weights.transport.memory import CudaIpc
    from alp_megatron.weights.verify import digest

    generator = torch.Generator("cuda").manual_seed(0)
    weights = {
        f"layer {index}": torch.randn(
            ROWS, COLUMNS, device="cuda", generator=generator, dtype=torch.bfloat16
        )
        for index in range(LAYERS)
    }
    size = sum(tensor.nbytes for tensor in weights.values())
    receiver, transport, seconds = _Receiver(), CudaIpc(), []
    try:
        transport.connect(receiver)
        for version in range(UPDATES):
            torch.cuda.synchronize()
            started = time.perf_counter()
            transport.send(weights.items(), version, receiver)
            seconds.append(time.perf_counter() - started)
        received = receiver.ask({"digests": True})
    finally:
        receiver.close()
        transport.close()
    sent = {name: digest(tensor) for name, tensor in weights.items()}
    best = median(seconds[1:])  # the first maps the memory and makes the tensors
    figures = {"update_s": best, "gb_per_s": size / best / 1e9, "sent_gb": size / 1e9}
    return Found(figures, [Goal("tensors that arrived whole", sent == received, at_least=1)])
