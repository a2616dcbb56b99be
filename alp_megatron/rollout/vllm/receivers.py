"""The engines' ends of the weight transports, inside vLLM's worker process.

vLLM imports this module by the name of `WorkerExtension`, before it loads the model; importing it
mends vLLM (see vllm_patches) and registers the back-ends of vLLM's weight-transfer API.
"""

import os
import tempfile
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from alp_megatron.rollout.engine import EngineError
from alp_megatron.rollout.identity import identity
from alp_megatron.rollout.settings import settings_from_environment
from alp_megatron.rollout.vllm.patches import apply_patches, refresh_tied_head
from alp_megatron.rollout.vllm.receipt import Receipt, expected_shapes
from alp_megatron.weights.transport.buckets import Assembler, Bucket, Memory, from_json
from alp_megatron.weights.transport.directory import read_bucket
from alp_megatron.weights.transport.memory import SharedBuffer, map_memory

SETTINGS = settings_from_environment()
EXPECTED = expected_shapes(SETTINGS)
apply_patches(SETTINGS.model_dir)


class _Checked(WeightTransferEngine):
    """Watches everything that a back-end loads, and keeps the model usable.

    Whatever the way of the tensors, they reach the model through its `load_weights`.
    """

    version = 0
    with_digests = False
    receipt: Receipt | None = None

    def start_weight_update(self) -> None:
        self.end_update()  # an earlier one that was given up
        tied = self.model_config.hf_config.tie_word_embeddings
        self.receipt = Receipt(EXPECTED, tied, self.with_digests)
        initialize_layerwise_reload(self.model)
        load = self.model.load_weights
        self.model.load_weights = lambda tensors: load(self.receipt.watch(tensors))

    def finish_weight_update(self) -> None:
        self.end_update()
        self.receipt.check_whole()
        refresh_tied_head(self.model)

    def end_update(self) -> None:
        """Back to a state from which an update can start."""
        if "load_weights" in self.model.__dict__:
            del self.model.load_weights
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


@dataclass
class _Pieces(WeightTransferUpdateInfo):
    version: int
    pieces: list[list[Any]]


class _ReceivesBuckets(_Checked):
    """Copies each bucket out of wherever it lies."""

    def init_transfer_engine(self, init_info) -> None:
        self._assembler = Assembler()

    def receive_weights(self, update_info: _Pieces) -> None:
        if update_info.version != self.version:
            raise EngineError(
                f"weight update: a bucket of version {update_info.version} came during the update "
                f"to {self.version}"
            )
        bucket = from_json(update_info.pieces)
        self.model.load_weights(self._assembler.take(bucket, self.view_of(update_info, bucket)))

    @abstractmethod
    def view_of(self, update_info: _Pieces, bucket: Bucket):
        """Piece -> its elements, `[count]`."""


@dataclass
class _PathAndSize(WeightTransferInitInfo):
    path: str
    capacity: int


class SharedMemoryReceiver(_ReceivesBuckets):
    """The engine's end of transport/memory.py's SharedMemory."""

    init_info_cls, update_info_cls = _PathAndSize, _Pieces
    _buffer: SharedBuffer | None = None

    def init_transfer_engine(self, init_info: _PathAndSize) -> None:
        super().init_transfer_engine(init_info)
        self.shutdown()
        try:
            self._buffer = SharedBuffer.open(init_info.path, init_info.capacity)
        except OSError as error:
            raise EngineError(
                f"weight update: the trainer's memory cannot be opened ({error}): "
                "rollout.transport=shared_memory needs the same host, user and container"
            ) from None

    def view_of(self, update_info: _Pieces, bucket: Bucket):
        return self._buffer.view

    def shutdown(self) -> None:
        if self._buffer is not None:
            self._buffer.close()


@dataclass
class _Nothing(WeightTransferInitInfo):
    pass


@dataclass
class _PiecesInFile(_Pieces):
    path: str
    checksum: int


class DirectoryReceiver(_ReceivesBuckets):
    """Of transport/directory.py."""

    init_info_cls, update_info_cls = _Nothing, _PiecesInFile

    def view_of(self, update_info: _PiecesInFile, bucket: Bucket):
        path, version = Path(update_info.path), update_info.version
        flat = read_bucket(path, version, bucket, update_info.checksum)
        return lambda piece: flat[piece.name]


@dataclass
class _DeviceMemory(WeightTransferInitInfo):
    gpu: str
    handle: list[Any]


class CudaIpcReceiver(_ReceivesBuckets):
    """The engine's end of transport/memory.py's CudaIpc."""

    init_info_cls, update_info_cls = _DeviceMemory, _Pieces

    def init_transfer_engine(self, init_info: _DeviceMemory) -> None:
        super().init_transfer_engine(init_info)
        self._buffer = Memory(map_memory(init_info.gpu, init_info.handle, self.device))

    def view_of(self, update_info: _Pieces, bucket: Bucket):
        return self._buffer.view

    def shutdown(self) -> None:
        self._buffer = Memory(torch.empty(0, dtype=torch.uint8))


class NcclReceiver(_Checked, NCCLWeightTransferEngine):
    """Of transport/nccl.py: vLLM's own, watched."""

    init_info_cls = NCCLWeightTransferEngine.init_info_cls
    update_info_cls = NCCLWeightTransferEngine.update_info_cls

    def init_transfer_engine(self, init_info) -> None:
        self.shutdown()  # the group of before, which had other members
        NCCLWeightTransferEngine.init_transfer_engine(self, init_info)

    def shutdown(self) -> None:
        NCCLWeightTransferEngine.shutdown(self)


RECEIVERS = {
    "shared_memory": SharedMemoryReceiver,
    "directory": DirectoryReceiver,
    "cuda_ipc": CudaIpcReceiver,
    "nccl": NcclReceiver,
}
for _name, _class in RECEIVERS.items():
    WeightTransferEngineFactory.register_engine(f"alp_{_name}", _class)


class WorkerExtension:
    """Methods that vLLM's worker gains, to be called with `collective_rpc`."""

    def identity(self) -> dict[str, Any]:
        transport = self.weight_transfer_engine.config.backend.removeprefix("alp_")
        return identity(SETTINGS, transport)

    def leave_scratch(self) -> None:
        """The start is over, and its temporary directory goes; see server/process.py."""
        del os.environ["TMPDIR"]
        tempfile.tempdir = None

    def expect_update(self, version: int, digests: bool) -> None:
        """To be called before `start_weight_update`; an unfinished update is given up."""
        self.weight_transfer_engine.version = version
        self.weight_transfer_engine.with_digests = digests
        self._weight_update_active = False

    def received_digests(self) -> dict[str, str]:
        """Of the last whole update."""
        return self.weight_transfer_engine.receipt.digests
