"""Weights by NCCL broadcast to engines on GPUs of their own: vLLM's weight-transfer API.

The engines' end is vLLM's own (`vllm.distributed.weight_transfer.nccl_engine`, version 0.32.0,
tensor by tensor). The trainer's rank 0 is rank 0 of the group, each engine is one more.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from alp_megatron.weights.transport.buckets import DEFAULT_CAPACITY, Receivers, bounded


class Nccl:
    """A Transport. Holds tensors of `capacity` bytes at a time, or one if that is larger.

    An engine that is lost during an update leaves the broadcast hanging on the GPU: the caller
    must end the process.
    """

    collective = True

    def __init__(self, capacity: int = DEFAULT_CAPACITY):
        self._capacity = capacity
        self._group = None

    def connect(self, receivers: Receivers) -> None:
        from vllm.distributed.weight_transfer.nccl_common import trainer_init
        from vllm.utils.network_utils import get_ip, get_open_port

        self.close()
        rendezvous = {
            "master_address": get_ip(),
            "master_port": get_open_port(),
            "world_size": 1 + receivers.count,
        }
        infos = [rendezvous | {"rank_offset": 1 + index} for index in range(receivers.count)]
        with ThreadPoolExecutor(1) as thread:  # both sides meet in the rendezvous
            connected = thread.submit(receivers.connect, infos)
            self._group = trainer_init(rendezvous)
            connected.result()

    def send(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, receivers: Receivers
    ) -> None:
        assert self._group is not None, "connect comes first"
        stream = torch.cuda.current_stream()
        thread = ThreadPoolExecutor(1)
        try:
            # NCCL needs them contiguous and on the GPU.
            on_gpu = ((name, tensor.detach().cuda().contiguous()) for name, tensor in tensors)
            for group in bounded(on_gpu, lambda named: named[1].nbytes, self._capacity):
                info = {
                    "names": [name for name, _ in group],
                    "dtype_names": [str(t.dtype).removeprefix("torch.") for _, t in group],
                    "shapes": [list(t.shape) for _, t in group],
                }
                received = thread.submit(receivers.receive, info)
                for _, tensor in group:
                    self._group.broadcast(tensor, src=0, stream=stream)
                received.result()  # first of all: after a failure the stream never ends
                stream.synchronize()
        finally:
            thread.shutdown(wait=False)

    def close(self) -> None:
        if self._group is not None:
            self._group.destroy()
            self._group = None
