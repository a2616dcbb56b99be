"""`alp-megatron quantize`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--hf", required=True, help="Hugging Face model directory")
    parser.add_argument("--out", required=True, help="directory to make")
    parser.add_argument("--format", default="fp8", help="fp8 (the default) or fp8_block")


def run(arguments: Namespace) -> int:
    """Makes a quantised checkpoint of a Hugging Face model. Raises UserError."""
    from alp_megatron.conversion.quantize import quantize

    quantize(Path(arguments.hf), Path(arguments.out), arguments.format)
    return 0
