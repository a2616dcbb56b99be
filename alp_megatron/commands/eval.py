"""`alp-megatron eval`."""

import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from alp_megatron.check.validate import validate
from alp_megatron.commands.arguments import add_overrides
from alp_megatron.config.load import config_from


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model_dir", help="Hugging Face model directory")
    add_overrides(parser)


def run(arguments: Namespace) -> int:
    """Prints the model's score on the evaluation prompts, as the rollout engine samples it."""
    config = config_from({"model": {"path": arguments.model_dir}}, arguments.overrides)
    validate(config)
    import torch

    from alp_megatron.hf.files import read_hf_config
    from alp_megatron.hf.tensors import HfTensors
    from alp_megatron.rollout.server.start import start_rollout_engine
    from alp_megatron.runtime.mesh import device_type
    from alp_megatron.tasks.task import build_task
    from alp_megatron.trainer.driver import Driver, stop_tokens
    from alp_megatron.weights.quantize.scheme import rollout_scheme
    from alp_megatron.weights.quantize.stream import quantized

    scheme = rollout_scheme(config)
    device = device_type(config.runtime.device)
    with (
        tempfile.TemporaryDirectory() as logs,
        start_rollout_engine(config, device, Path(logs)) as engine,
    ):
        if scheme is not None:  # else the engine has loaded the weights itself
            weights = HfTensors(config.model.path).stream(getattr(torch, config.rollout.dtype))
            engine.update_weights(quantized(weights, scheme), version=0)
        task = build_task(config)
        stops = stop_tokens(config, read_hf_config(config.model.path), task.tokenizer)
        score = Driver(config, engine, task, stops).evaluate()
    samples = len(task.eval_items()) * config.evaluation.samples_per_prompt
    print(f"score {score:.4f} ({samples} samples at temperature {config.evaluation.temperature:g})")
    return 0
