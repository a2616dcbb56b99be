"""`alp-megatron mismatch`: trainer precisions against rollout quantisations, at equal weights."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from alp_megatron.check.validate import validate
from alp_megatron.commands.arguments import add_config
from alp_megatron.config.load import load_config
from alp_megatron.errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--tokens",
        help='JSONL of {"sample_id", "input_ids", "prompt_length"}; else sampled',
    )
    parser.add_argument("--quantizations", help="some of them, separated by commas; all else")
    parser.add_argument(
        "--trainers",
        help="float32, bfloat16, fp8_delayed, fp8_tensorwise, fp8_blockwise, fp8_mxfp8; the first "
        "two if not given",
    )
    parser.add_argument("--out", required=True, help="Markdown file to make")


def run(arguments: Namespace) -> int:
    """Prints the matrix; writes OUT (Markdown), and beside it the figures (.json) and the tokens
    (.tokens.jsonl). Returns the exit code of the trainer's processes where they fail.
    """
    from alp_megatron.studies.mismatch.job import (
        DEFAULT_TRAINERS,
        QUANTIZATIONS,
        TRAINERS,
        TrainerFailed,
        measure,
        schemes_of,
        trainer_configs,
    )
    from alp_megatron.studies.mismatch.table import text_table

    config = load_config(arguments.config, arguments.overrides)
    shape = validate(config, for_training=arguments.tokens is None)
    quantizations = _chosen("--quantizations", arguments.quantizations, QUANTIZATIONS)
    schemes = schemes_of(config, quantizations)
    names = _chosen("--trainers", arguments.trainers, tuple(TRAINERS), DEFAULT_TRAINERS)
    trainers = trainer_configs(config, names, shape)
    out = Path(arguments.out)
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: its directory does not exist; make it first.")
    tokens = None if arguments.tokens is None else Path(arguments.tokens)
    try:
        rows = measure(config, schemes, trainers, tokens, out)
    except TrainerFailed as failure:
        return failure.code
    print(text_table(rows))
    return 0


def _chosen(
    option: str, text: str | None, known: tuple[str, ...], default: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Returns the names of a list with commas; without one the default, or else all.

    Raises UserError for a name that is not known.
    """
    names = (default or known) if text is None else tuple(text.split(","))
    for name in names:
        if name not in known:
            raise UserError(f"{option} names {name!r}: use some of {', '.join(known)}.")
    return tuple(dict.fromkeys(names))
