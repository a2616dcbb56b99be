"""The command `alp-megatron`: what its subcommands are, and how each ends.

Each has a module of its name in commands/, with `add_arguments(parser)` and `run(arguments)`, which
returns the exit code. Only that of the command that is asked for is imported.
"""

import argparse
import os
import select
import signal
import sys
from importlib import import_module

from alp_megatron import __version__
from alp_megatron.errors import RunError, UserError

COMMANDS = {
    "train": "train a policy",
    "warm-start": "make a base model by supervised training",
    "serve": "start a vLLM server for rollout.server_urls",
    "eval": "score a model on a task with the rollout engine",
    "score": "log-probabilities of given tokens under the trainer",
    "mismatch": "trainer against rollout engine, at equal weights",
    "compare": "methods x mismatches x seeds: runs, table, figures",
    "probe": "several methods' updates on the same rollouts: figure 3",
    "quantize": "make a quantised checkpoint for vLLM with ModelOpt",
    "plan": "memory, traffic and time that a run would need",
    "report": "make report.html and figures of a run, or of several",
    "convert": "turn a model into a Megatron checkpoint or back",
    "launch": "submit runs and sweeps to Slurm",
    "config": "every key with its type, default and meaning; or the values of a file",
    "doctor": "what is installed and what this machine can run",
}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for a user's mistake (one sentence on stderr), else 1."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        # Python would try once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _reader_has_left() -> bool:
    """Says whether nobody reads what is printed any more, as after `... | head`."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # an error is reported without being asked for
    return bool(poll.poll(0))


def parse(words: list[str]) -> argparse.Namespace:
    """Reads a command line; `key=value` may stand anywhere in it.

    argparse takes a list of positionals in one place only; what it leaves is sorted out here.
    """
    parser = _parser(words)
    arguments, rest = parser.parse_known_args(words)
    strays = [word for word in rest if word.startswith("-") or "=" not in word]
    if strays or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(strays or rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser(words: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alp-megatron",
        description="RL post-training with Adaptive Layerwise Perturbation.",
    )
    parser.add_argument("--version", action="version", version=f"ALP-Megatron {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            module = import_module(f"alp_megatron.commands.{name.replace('-', '_')}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":  # job scripts of an older version name this module
    sys.exit(main())
