"""`alp-megatron plan`: what a run would need, from its configuration and config.json alone."""

from argparse import ArgumentParser, Namespace

from alp_megatron.check.validate import check_settings
from alp_megatron.commands.arguments import add_config
from alp_megatron.config.load import load_config
from alp_megatron.errors import UserError
from alp_megatron.estimate.engine import load_hardware
from alp_megatron.estimate.fit import nearest_fit, problems
from alp_megatron.estimate.report import plan_text
from alp_megatron.hf.shape import read_model_shape


def add_arguments(parser: ArgumentParser) -> None:
    add_config(parser, "YAML file; of the model only config.json need be there")
    parser.add_argument("--gpus", type=int, help="training processes; else runtime.world_size")
    parser.add_argument("--hardware", default="h100", help="h100 (the default), or a YAML file")


def run(arguments: Namespace) -> int:
    """Returns 0 if the run fits, 1 if it does not. Raises UserError."""
    config = load_config(arguments.config, arguments.overrides)
    config.runtime.device = "auto"  # that of the machine that will run it
    if arguments.gpus is not None:
        if arguments.gpus < 1:
            raise UserError(f"--gpus {arguments.gpus} is no number of GPUs: give 1 or more.")
        config.runtime.world_size = arguments.gpus
    hardware = load_hardware(arguments.hardware)
    shape = read_model_shape(config.model.path)
    found = problems(config, shape, hardware)
    if _is_a_layout(config, shape):
        print(plan_text(config, shape, hardware), end="\n\n")
    if not found:
        print("It fits.")
        return 0
    print("It does not fit:", *(f"  {sentence}" for sentence in found), sep="\n")
    nearest = nearest_fit(config, shape, hardware)
    if nearest is None:
        print("No layout of it on so many GPUs fits.")
    else:
        print("The nearest that does:", f"  {' '.join(nearest)}", sep="\n")
    return 1


def _is_a_layout(config, shape) -> bool:
    try:
        check_settings(config, shape)
    except UserError:
        return False
    return True
