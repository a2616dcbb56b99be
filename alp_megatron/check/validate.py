"""Refuses what cannot run, before any process starts."""

from pathlib import Path

from alp_megatron.check.fp8 import check_fp8
from alp_megatron.check.objective import check_noise_target, check_objective
from alp_megatron.check.rollout import check_quantization, check_servers
from alp_megatron.config.layout import (
    data_parallel_size,
    num_microbatches,
    smallest_world_size,
    world_size,
)
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.hf.shape import ModelShape, read_model_shape
from alp_megatron.hf.tensors import HfTensors, check_tensors
from alp_megatron.hf.tokenizer import check_tokenizer


def validate(config: Config, *, for_training: bool = True) -> ModelShape:
    """Checks the model directory, the layout, the lengths and, for training, the batches.

    Returns:
        The model's sizes.

    Raises:
        UserError: one sentence naming the key and the mend.
    """
    shape = read_model_shape(config.model.path)
    model_dir = Path(config.model.path)
    weights = HfTensors(model_dir).shapes
    check_tokenizer(model_dir, shape)
    check_tensors(model_dir, weights, shape)
    check_settings(config, shape, for_training=for_training)
    check_quantization(config, weights, shape)
    if for_training:
        _check_task(config)
    return shape


def check_settings(config: Config, shape: ModelShape, *, for_training: bool = True) -> None:
    """Checks all that can be checked without the weights and the data. Raises UserError."""
    check_layout(config, shape)
    _check_lengths(config, shape)
    check_servers(config)
    check_fp8(config, shape)
    _check_perturbed_layers(config, shape)
    check_noise_target(config.perturbation)
    if for_training:
        check_objective(config.objective)
        _check_batches(config)
        _check_sync_interval(config)
        _check_optimizer_sharding(config)


def check_layout(config: Config, shape: ModelShape) -> None:
    """Checks that the model can be split as the configuration asks.

    Raises UserError naming the key.
    """
    _check_tensor_parallel(config, shape)
    _check_experts(config, shape)
    _check_pipeline_parallel(config, shape)
    _check_world_size(config)
    _check_device(config)


def _check_tensor_parallel(config: Config, shape: ModelShape) -> None:
    tp = config.model.tensor_model_parallel_size
    heads = shape.num_attention_heads
    fitting = [n for n in range(1, heads + 1) if _undivided_by(n, shape) is None]
    what = _undivided_by(tp, shape)
    if what is not None:
        raise UserError(
            f"model.tensor_model_parallel_size={tp} does not divide the model's {what}: use "
            f"{_either(fitting)}."
        )
    if config.model.sequence_parallel and tp == 1:
        raise UserError(
            "model.sequence_parallel=true needs model.tensor_model_parallel_size of 2 or more: "
            "set it to false."
        )


def _undivided_by(tp: int, shape: ModelShape) -> str | None:
    """Returns what TP does not divide.

    Several ranks may share a key-value head, if equally many.
    """
    heads, groups = shape.num_attention_heads, shape.num_key_value_heads
    rows = (heads + 2 * groups) * shape.head_dim
    if heads % tp:
        return f"{heads} attention heads"
    if groups % tp and tp % groups:
        return f"{groups} key-value heads"
    if rows % tp:
        return f"{rows} rows of queries, keys and values"
    if shape.experts is None and shape.intermediate_size % tp:
        return f"{shape.intermediate_size} MLP channels"
    return None


def _check_experts(config: Config, shape: ModelShape) -> None:
    model = config.model
    tp, ep = model.tensor_model_parallel_size, model.expert_model_parallel_size
    if shape.experts is None:
        if ep > 1:
            raise UserError(
                f"model.expert_model_parallel_size={ep} needs a model with experts: set it to 1."
            )
        return
    count = shape.experts.num_experts
    if count % ep:
        fitting = [n for n in range(1, count + 1) if count % n == 0]
        raise UserError(
            f"model.expert_model_parallel_size={ep} does not divide the model's {count} experts: "
            f"use {_either(fitting)}."
        )
    if tp > 1 and not model.sequence_parallel:
        raise UserError(
            f"model.tensor_model_parallel_size={tp} needs model.sequence_parallel=true in a model "
            "with experts: set it."
        )


def _check_pipeline_parallel(config: Config, shape: ModelShape) -> None:
    pp = config.model.pipeline_model_parallel_size
    vpp = config.model.virtual_pipeline_model_parallel_size
    layers = shape.num_hidden_layers
    if layers % pp:
        fitting = [n for n in range(1, layers + 1) if layers % n == 0]
        raise UserError(
            f"model.pipeline_model_parallel_size={pp} does not divide the model's {layers} "
            f"layers: use {_either(fitting)}."
        )
    if vpp is None:
        return
    if pp == 1:
        raise UserError(
            f"model.virtual_pipeline_model_parallel_size={vpp} needs "
            "model.pipeline_model_parallel_size of 2 or more: set it to null."
        )
    if layers // pp % vpp:
        fitting = [n for n in range(2, layers // pp + 1) if layers // pp % n == 0]
        raise UserError(
            f"model.virtual_pipeline_model_parallel_size={vpp} does not divide the "
            f"{layers // pp} layers of a pipeline stage: use {_either([*fitting, 'null'])}."
        )


def _check_world_size(config: Config) -> None:
    needed, world = smallest_world_size(config), world_size(config)
    if world % needed:
        raise UserError(
            f"runtime.world_size={world} is not a multiple of the {needed} processes that the "
            f"layout needs (PP x the least common multiple of TP and EP): use {needed} or "
            f"{needed * (world // needed + 1)}."
        )


def _check_device(config: Config) -> None:
    if config.runtime.device != "auto":
        from alp_megatron.runtime.mesh import device_type

        device_type(config.runtime.device)


def _check_lengths(config: Config, shape: ModelShape) -> None:
    rollout = config.rollout
    if rollout.max_model_len > shape.max_position_embeddings:
        raise UserError(
            f"rollout.max_model_len={rollout.max_model_len} is more than the model's "
            f"{shape.max_position_embeddings} positions: use at most that."
        )
    if rollout.max_new_tokens >= rollout.max_model_len:
        raise UserError(
            f"rollout.max_new_tokens={rollout.max_new_tokens} leaves no room for a prompt in "
            f"rollout.max_model_len={rollout.max_model_len}: lower the one or raise the other."
        )
    for token in rollout.stop_token_ids:
        if not 0 <= token < shape.vocab_size:
            raise UserError(
                f"rollout.stop_token_ids holds {token}, which is outside the vocabulary: use "
                f"ids from 0 to {shape.vocab_size - 1}."
            )


def _check_perturbed_layers(config: Config, shape: ModelShape) -> None:
    start, end = config.perturbation.layer_start, config.perturbation.layer_end
    layers = shape.num_hidden_layers
    if end is not None and end > layers:
        raise UserError(
            f"perturbation.layer_end={end} is beyond the model's {layers} layers: use at most "
            f"{layers}, or null for all."
        )
    if start >= (end or layers):
        raise UserError(
            f"perturbation.layer_start={start} leaves no layer before {end or layers}: use a "
            "smaller one, or perturbation.sigma0=0 for no noise."
        )


def _check_batches(config: Config) -> None:
    trainer, rollout = config.trainer, config.rollout
    samples = rollout.prompts_per_step * rollout.samples_per_prompt
    batch = trainer.global_batch_size
    if samples % batch:
        raise UserError(
            f"trainer.global_batch_size={batch} does not divide the {samples} samples of a step "
            "(rollout.prompts_per_step x rollout.samples_per_prompt): change one of the three."
        )
    dp = data_parallel_size(config)
    if batch % (dp * trainer.micro_batch_size):
        raise UserError(
            f"trainer.global_batch_size={batch} is not a multiple of {dp} data-parallel replicas "
            f"x trainer.micro_batch_size={trainer.micro_batch_size}: change one of the two."
        )
    pp, micro_batches = config.model.pipeline_model_parallel_size, num_microbatches(config)
    if config.model.virtual_pipeline_model_parallel_size and micro_batches % pp:
        raise UserError(
            f"trainer.micro_batch_size={trainer.micro_batch_size} makes {micro_batches} "
            f"micro-batches, but virtual pipeline stages need a multiple of {pp}: use a smaller "
            "micro-batch or a larger trainer.global_batch_size."
        )


def _check_sync_interval(config: Config) -> None:
    """Evaluations and checkpoints want the engine at the trainer's weights."""
    interval = config.rollout.sync_interval
    for key, value in (
        ("evaluation.interval", config.evaluation.interval),
        ("trainer.save_interval", config.trainer.save_interval),
    ):
        if value % interval:
            raise UserError(
                f"{key}={value} is not a multiple of rollout.sync_interval={interval}: use "
                f"{interval * -(-value // interval)}, or another sync_interval."
            )


def _check_optimizer_sharding(config: Config) -> None:
    trainer = config.trainer
    whole = not trainer.use_distributed_optimizer
    if whole and config.model.params_dtype == "bfloat16":
        raise UserError(
            "trainer.use_distributed_optimizer=false with model.params_dtype=bfloat16: Megatron's "
            "undivided optimizer cannot save weights of two types, and the noise scales stay in "
            "float32; set trainer.use_distributed_optimizer=true, at any number of replicas."
        )
    if whole and trainer.distrib_optim_sharding_type == "dp_reshardable":
        raise UserError(
            "trainer.distrib_optim_sharding_type=dp_reshardable is for an optimizer that is split "
            "over replicas: set trainer.use_distributed_optimizer=true, or leave it out."
        )


def _check_task(config: Config) -> None:
    if config.task.name != "file":
        return
    for key, path in (("task.train", config.task.train), ("task.eval", config.task.eval)):
        if path is None:
            raise UserError(f"task.name=file needs {key}: give a JSONL or parquet file.")
        if not Path(path).is_file():
            raise UserError(f"{key}={path} is not a file: check the path.")


def _either(options: list) -> str:
    """Returns '1', '1 or 2', '1, 2 or 4'."""
    *rest, last = map(str, options)
    return f"{', '.join(rest)} or {last}" if rest else last


def check_inputs(config: Config) -> None:
    """Reads every line of the task's files, and asks the servers that are given.

    For a configuration that `validate` has accepted. Raises UserError naming file and line, or
    the server.
    """
    if config.task.name == "file":
        from alp_megatron.tasks.task import build_task

        build_task(config)
    if config.rollout.server_urls:
        from alp_megatron.rollout.server.client import check_server_urls

        check_server_urls(config)
