"""Writes a Megatron distributed checkpoint (torch_dist) piece by piece.

torch's own writer makes the files and the metadata; only what is asked for lies in memory.
"""

import io
import json
import pickle
from argparse import Namespace
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import torch
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from alp_megatron.config.schema import Config
from alp_megatron.conversion.output import fingerprint, whole_or_absent
from alp_megatron.conversion.parameters import (
    Box,
    MergedParameters,
    Parameter,
    cuts,
    extra_state_keys,
    parameters_of,
)
from alp_megatron.conversion.verify import Verification
from alp_megatron.conversion.workers import ByteProgress, run_tasks
from alp_megatron.files import whole
from alp_megatron.hf.files import copy_model_files
from alp_megatron.hf.shape import ModelShape, read_model_shape
from alp_megatron.hf.tensors import HfTensors, check_tensors
from alp_megatron.weights.transport.buckets import bounded

# A piece is a file, and torch's writer keeps a file's tensors until it is written: so a piece is
# small, but no model makes many more than MAX_PIECES files.
PIECE_BYTES = 16 * 2**20
MAX_PIECES = 1000


@dataclass(frozen=True)
class Piece:
    """The parameters (or, in one piece, the extra states) of one file."""

    number: int
    parameters: tuple[Parameter, ...]
    extra_states: tuple[str, ...]
    nbytes: int


def pieces_of(
    parameters: list[Parameter], extra_states: list[str], tensors: HfTensors
) -> list[Piece]:
    """Deals parameters, in order, to pieces of one parameter or more."""

    def nbytes(parameter: Parameter) -> int:
        return prod(parameter.shape) * _dtype(parameter, tensors).itemsize

    limit = max(PIECE_BYTES, sum(map(nbytes, parameters)) // MAX_PIECES)
    groups = bounded(parameters, nbytes, limit)
    pieces = [Piece(i, tuple(held), (), sum(map(nbytes, held))) for i, held in enumerate(groups)]
    return [*pieces, Piece(len(pieces), (), tuple(extra_states), 0)]


def _dtype(parameter: Parameter, tensors: HfTensors) -> torch.dtype:
    dtype = tensors.dtype(parameter.hf_names[0])
    for name in parameter.hf_names[1:]:
        dtype = torch.promote_types(dtype, tensors.dtype(name))
    return dtype


@dataclass(frozen=True)
class MegatronWriter:
    """Holds what every process needs to write its pieces.

    Attributes:
        state_dir: the checkpoint's directory.
        model_dir: the Hugging Face model.
        query_groups: key-value heads.
        tensor_parallel: the stored tensors are cut for so many ranks; others read them too.
    """

    state_dir: Path
    model_dir: Path
    query_groups: int
    tensor_parallel: int

    def write(self, piece: Piece) -> int:
        """Writes a piece unless it is there from an earlier attempt. Returns its bytes."""
        done = self._done(piece)
        if not done.exists():
            tensors = HfTensors(self.model_dir)
            planner = _Planner(MergedParameters(tensors, self.query_groups))
            save_plan = self._save_plan(piece, tensors, planner)
            results = self._writer(piece).write_data(save_plan, planner).value()
            with whole(done) as partial:
                partial.write_bytes(pickle.dumps(results))
        return piece.nbytes

    def finish(self, pieces: list[Piece], shape: ModelShape, pipeline_parallel: int) -> None:
        """Writes the metadata of all pieces, and Megatron's two small files."""
        tensors, planner = HfTensors(self.model_dir), _Planner(None)
        save_plans = [self._save_plan(piece, tensors, planner) for piece in pieces]
        _, metadata = create_default_global_save_plan(save_plans, rewrite_index_hints=False)
        results = [pickle.loads(self._done(piece).read_bytes()) for piece in pieces]
        _FileWriter(self.state_dir).finish(metadata, results)
        torch.save(
            _common(shape, self.tensor_parallel, pipeline_parallel), self.state_dir / "common.pt"
        )
        formats = {"sharded_backend": "torch_dist", "common_backend": "torch"}
        versions = {"sharded_backend_version": 1, "common_backend_version": 1}
        (self.state_dir / "metadata.json").write_text(json.dumps(formats | versions))
        for piece in pieces:
            self._done(piece).unlink()

    def _done(self, piece: Piece) -> Path:
        return self.state_dir / f".piece_{piece.number}"

    def _writer(self, piece: Piece) -> "_FileWriter":
        # No copy-ahead from a GPU: the tensors come from files.
        writer = _FileWriter(self.state_dir, per_thread_copy_ahead=0)
        writer.set_up_storage_writer(False, rank=piece.number, use_collectives=False)
        return writer

    def _save_plan(self, piece: Piece, tensors: HfTensors, planner: "_Planner") -> SavePlan:
        items = [planner.add_bytes(key) for key in piece.extra_states]
        for parameter in piece.parameters:
            dtype = _dtype(parameter, tensors)
            row_bytes = prod(parameter.shape[1:]) * dtype.itemsize
            max_rows = max(1, PIECE_BYTES // row_bytes)
            for key in parameter.keys:
                for box in cuts(parameter, self.tensor_parallel, max_rows):
                    items.append(planner.add(key, parameter, box, dtype))
        return self._writer(piece).prepare_local_plan(SavePlan(items))


class _FileWriter(FileSystemWriter):
    """Leaves out the writing's own path and random number: the same model gives the same bytes."""

    def storage_meta(self) -> None:
        return None


class _Planner(DefaultSavePlanner):
    """Gives the writer each tensor only when it writes it."""

    def __init__(self, source: MergedParameters | None):
        super().__init__()
        self._source = source
        self._boxes: dict[MetadataIndex, tuple[Parameter, Box]] = {}

    def add(self, key: str, parameter: Parameter, box: Box, dtype: torch.dtype) -> WriteItem:
        offsets = torch.Size((*parameter.index, *box[0]))
        sizes = torch.Size((*(1 for _ in parameter.index), *box[1]))
        index = MetadataIndex(key, offsets)
        self._boxes[index] = parameter, box
        data = TensorWriteData(
            chunk=ChunkStorageMetadata(offsets, sizes),
            properties=TensorProperties(dtype=dtype),
            size=torch.Size((*parameter.stack, *parameter.shape)),
        )
        return WriteItem(index, WriteItemType.SHARD, tensor_data=data)

    def add_bytes(self, key: str) -> WriteItem:
        return WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO)

    def resolve_data(self, write_item: WriteItem):
        if write_item.type == WriteItemType.BYTE_IO:
            return _empty_state()
        parameter, box = self._boxes[write_item.index]
        return self._source.box(parameter, box).view(write_item.tensor_data.chunk.sizes)


def _empty_state() -> io.BytesIO:
    """Returns what Megatron writes of a ShardedObject whose data is None."""
    stream = io.BytesIO()
    torch.save([None], stream)
    return stream


def _common(shape: ModelShape, tensor_parallel: int, pipeline_parallel: int) -> dict:
    """Returns what Megatron-LM's load_checkpoint looks for beside the weights.

    Below version 2.0 it would permute the attention weights.
    """
    sizes = asdict(shape)
    arguments = Namespace(
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=pipeline_parallel,
        num_layers=sizes["num_hidden_layers"],
        hidden_size=sizes["hidden_size"],
        ffn_hidden_size=sizes["intermediate_size"],
        num_attention_heads=sizes["num_attention_heads"],
        num_query_groups=sizes["num_key_value_heads"],
        kv_channels=sizes["head_dim"],
        max_position_embeddings=sizes["max_position_embeddings"],
        untie_embeddings_and_output_weights=not sizes["tie_word_embeddings"],
        no_save_optim=True,
        no_save_rng=True,
    )
    return {
        "args": arguments,
        "checkpoint_version": 3.0,
        "iteration": 0,
        "content_metadata": {"distrib_optim_sharding_type": "fully_reshardable"},
    }


# Beside config.json: what of the source the checkpoint's own files cannot tell.
SOURCE_DTYPES = "source_dtypes.json"


def hf_to_megatron(
    model_dir: Path, out: Path, config: Config, *, workers: int, verify: str
) -> None:
    """Writes the model as `out`/state, with its config and tokenizer beside.

    Args:
        config: its `model` is the layout for which the stored tensors are cut, and in which the
            logits are verified.
        verify: "auto", "full" or "off"; see Verification.

    Raises:
        UserError: the input is not a whole, supported model, or the output cannot be made.
        RunError: the verification failed.
    """
    shape = read_model_shape(model_dir)
    tensors = HfTensors(model_dir)
    check_tensors(model_dir, tensors.shapes, shape)
    parameters = parameters_of(shape)
    pieces = pieces_of(parameters, extra_state_keys(parameters), tensors)
    nbytes = sum(piece.nbytes for piece in pieces)
    layout = config.model
    job = {
        "source": fingerprint([model_dir / "config.json", *tensors.files]),
        "tensor_parallel": layout.tensor_model_parallel_size,
    }
    verification = Verification(verify, config, shape, parameters)
    with whole_or_absent(out, job, nbytes) as partial_dir:
        state_dir = partial_dir / "state"
        state_dir.mkdir(exist_ok=True)
        writer = MegatronWriter(
            state_dir, model_dir, shape.num_key_value_heads, layout.tensor_model_parallel_size
        )
        progress = ByteProgress("converted", nbytes)
        run_tasks(writer.write, pieces, workers, progress)
        writer.finish(pieces, shape, layout.pipeline_model_parallel_size)
        copy_model_files(model_dir, partial_dir)
        _keep_dtypes(tensors, shape, partial_dir)
        progress.finish()
        verification.tensors(model_dir, state_dir, workers)
        verification.logprobs(model_dir, state_dir)


def _keep_dtypes(tensors: HfTensors, shape: ModelShape, out: Path) -> None:
    dtypes = {
        name: str(tensors.dtype(name)).removeprefix("torch.") for name in shape.tensor_shapes()
    }
    (out / SOURCE_DTYPES).write_text(json.dumps(dtypes, indent=1) + "\n")
