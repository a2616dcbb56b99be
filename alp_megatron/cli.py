"""The command `alp-megatron`."""

import argparse
import sys

from alp_megatron.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for a user's mistake (one sentence on stderr), else 1."""
    arguments = _parse(argv)
    try:
        return arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """argparse takes a list of positionals in one place only; `key=value` may stand anywhere."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    strays = [word for word in rest if word.startswith("-") or "=" not in word]
    if strays or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(strays or rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alp-megatron",
        description="RL post-training with Adaptive Layerwise Perturbation.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, run, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    overrides = {"nargs": "*", "metavar": "key=value", "help": "e.g. trainer.lr=1e-5"}
    train = command("train", _train, "train a policy")
    train.add_argument("config", help="YAML file")
    train.add_argument("overrides", **overrides)
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")

    warm = command("warm-start", _warm_start, "make a base model by supervised training")
    warm.add_argument("config", help="YAML file")
    warm.add_argument("overrides", **overrides)
    warm.add_argument("--out", required=True, help="Hugging Face model directory to make")

    evaluate = command("eval", _evaluate, "score a model on a task with the rollout engine")
    evaluate.add_argument("model_dir", help="Hugging Face model directory")
    evaluate.add_argument("overrides", **overrides)

    score = command("score", _score, "log-probabilities of given tokens under the trainer")
    score.add_argument("model_dir", help="Hugging Face model directory")
    score.add_argument("overrides", **overrides)
    score.add_argument("--tokens", required=True, help='JSONL of {"sample_id", "input_ids"}')
    score.add_argument("--out", required=True, help='JSONL of {"sample_id", "logprobs"}')
    score.add_argument("--perturb", action="store_true", help="with layerwise noise")
    score.add_argument("--sigma", type=float, default=0.01, help="noise scale of every layer")
    score.add_argument("--seed", type=int, default=0, help="of the noise")
    score.add_argument("--step", type=int, default=0, help="of the noise")

    report = command("report", _report, "make a run's figures and report.html")
    report.add_argument("run_dir", nargs="+")

    command("doctor", _doctor, "what is installed and what this machine can run")
    return parser


def _train(arguments) -> int:
    from alp_megatron.commands.train import train

    return train(arguments.config, arguments.overrides, arguments.resume)


def _warm_start(arguments) -> int:
    from alp_megatron.commands.warm_start import warm_start

    return warm_start(arguments.config, arguments.overrides, arguments.out)


def _evaluate(arguments) -> int:
    from alp_megatron.commands.evaluate import evaluate

    return evaluate(arguments.model_dir, arguments.overrides)


def _score(arguments) -> int:
    from alp_megatron.commands.score import score

    return score(arguments)


def _report(arguments) -> int:
    from pathlib import Path

    from alp_megatron.diagnostics.report import write_report

    for run_dir in arguments.run_dir:
        print(write_report(Path(run_dir)))
    return 0


def _doctor(arguments) -> int:
    from alp_megatron.doctor import doctor

    return doctor()


if __name__ == "__main__":
    sys.exit(main())
