"""`alp-megatron score`: the trainer's log-probabilities of given tokens, in any layout."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from alp_megatron.check.validate import validate
from alp_megatron.commands.arguments import add_overrides
from alp_megatron.config.load import config_from
from alp_megatron.errors import UserError
from alp_megatron.studies.score import launch_scoring, read_token_lines


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model_dir", help="Hugging Face model directory")
    add_overrides(parser)
    parser.add_argument("--tokens", required=True, help='JSONL of {"sample_id", "input_ids"}')
    parser.add_argument("--out", required=True, help='JSONL of {"sample_id", "logprobs"}')
    parser.add_argument("--perturb", action="store_true", help="with layerwise noise")
    parser.add_argument("--sigma", type=float, default=0.01, help="noise scale of every layer")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--step", type=int, default=0, help="of the noise")


def run(arguments: Namespace) -> int:
    """Checks the input, then starts the processes; rank 0 writes the output when it is whole."""
    tree = {
        "model": {"path": arguments.model_dir},
        "perturbation": {"sigma0": arguments.sigma},
    }
    config = config_from(tree, arguments.overrides)
    for name, bits in (("seed", 63), ("step", 32)):
        if not 0 <= getattr(arguments, name) < 2**bits:
            raise UserError(f"--{name} must be an integer from 0 to 2**{bits} - 1.")
    shape = validate(config, for_training=False)
    read_token_lines(Path(arguments.tokens), shape.vocab_size)
    out = Path(arguments.out)
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: its directory does not exist; make it first.")
    key = [str(arguments.seed), str(arguments.step)] if arguments.perturb else []
    return launch_scoring(config, arguments.tokens, out, *key)
