"""Hugging Face directory -> Megatron checkpoint."""

import json
from pathlib import Path

from alp_megatron.config.model_files import check_tensors, check_weights
from alp_megatron.config.model_shape import ModelShape, read_model_shape
from alp_megatron.config.schema import Config
from alp_megatron.model.hf_files import copy_model_files, read_hf_config
from conversion.hf_tensors import HfTensors, weight_files
from conversion.megatron_writer import MegatronWriter, pieces_of
from conversion.output import fingerprint, whole_or_absent
from conversion.parameters import extra_state_keys, parameters_of
from conversion.verify import Verification
from conversion.workers import Progress, run_tasks

# Beside config.json: what of the source the checkpoint's own files cannot tell.
SOURCE_DTYPES = "source_dtypes.json"


def hf_to_megatron(
    model_dir: Path, out: Path, config: Config, *, workers: int, verify: str
) -> None:
    """Write the model as `out`/state, with its config and tokenizer beside.

    Args:
        config: its `model` is the layout for which the stored tensors are cut, and in which the
            logits are verified.
        verify: "auto", "full" or "off"; see Verification.

    Raises:
        UserError: the input is not a whole, supported model, or the output cannot be made.
        RunError: the verification failed.
    """
    shape = read_model_shape(model_dir)
    check_tensors(model_dir, check_weights(model_dir), shape)
    tensors = HfTensors(model_dir)
    parameters = parameters_of(read_hf_config(model_dir)["model_type"], shape)
    pieces = pieces_of(parameters, extra_state_keys(parameters), tensors)
    nbytes = sum(piece.nbytes for piece in pieces)
    layout = config.model
    job = {
        "source": fingerprint([model_dir / "config.json", *weight_files(model_dir)]),
        "tensor_parallel": layout.tensor_model_parallel_size,
    }
    verification = Verification(verify, config, shape, parameters)
    with whole_or_absent(out, job, nbytes) as partial_dir:
        state_dir = partial_dir / "state"
        state_dir.mkdir(exist_ok=True)
        writer = MegatronWriter(
            state_dir, model_dir, shape.num_key_value_heads, layout.tensor_model_parallel_size
        )
        progress = Progress("converted", nbytes)
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
