"""The command `alp-megatron`."""

import argparse
import os
import select
import signal
import sys

from alp_megatron.commands.launch import add_launch_commands
from alp_megatron.errors import RunError, UserError


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for a user's mistake (one sentence on stderr), else 1."""
    arguments = _parse(argv)
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
    """Nobody reads what is printed any more, as after `... | head`."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # an error is reported without being asked for
    return bool(poll.poll(0))


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

    serve = command("serve", _serve, "start a vLLM server for rollout.server_urls")
    serve.add_argument("config", help="YAML file")
    serve.add_argument("overrides", **overrides)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on")
    serve.add_argument("--port", type=int, default=0, help="0 (the default) for a free one")
    serve.add_argument("--ready-file", help="file to make when the server is ready")

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

    mismatch = command("mismatch", _mismatch, "trainer against rollout engine, at equal weights")
    mismatch.add_argument("config", help="YAML file")
    mismatch.add_argument("overrides", **overrides)
    mismatch.add_argument(
        "--tokens",
        help='JSONL of {"sample_id", "input_ids", "prompt_length"}; else sampled',
    )
    mismatch.add_argument("--quantizations", help="some of them, separated by commas; all else")
    mismatch.add_argument(
        "--trainers",
        help="float32, bfloat16, fp8_delayed, fp8_tensorwise, fp8_blockwise, fp8_mxfp8; the first "
        "two if not given",
    )
    mismatch.add_argument("--out", required=True, help="Markdown file to make")

    compare = command("compare", _compare, "methods x mismatches x seeds: runs, table, figures")
    compare.add_argument("config", help="YAML file, as in configs/comparisons")
    compare.add_argument("overrides", **overrides)
    compare.add_argument("--methods", help="separated by commas; those of the file else")
    compare.add_argument("--mismatch", help="some of the file's, separated by commas; all else")
    compare.add_argument("--seeds", help="as in 1,2,3; those of the file else")
    compare.add_argument("--parallel", type=int, help="runs at once; as the cores allow else")
    compare.add_argument("--dry-run", action="store_true", help="print the runs that are due")
    compare.add_argument("--table-only", action="store_true", help="of the runs that are there")

    probe = command("probe", _probe, "several methods' updates on the same rollouts: figure 3")
    probe.add_argument("config", help="YAML file")
    probe.add_argument("overrides", **overrides)
    probe.add_argument("--methods", default="bypass,alp", help="separated by commas")
    probe.add_argument("--updates", type=int, default=16, help="mini-batches of the rollouts")
    probe.add_argument("--from", dest="start", help="RUN/checkpoints/step_N; else model.path")
    probe.add_argument("--out", help="directory to make or go on with; else RUN_DIR-probe")

    quantize = command("quantize", _quantize, "make a quantised checkpoint for vLLM with ModelOpt")
    quantize.add_argument("--hf", required=True, help="Hugging Face model directory")
    quantize.add_argument("--out", required=True, help="directory to make")
    quantize.add_argument("--format", default="fp8", help="fp8 (the default) or fp8_block")

    plan = command("plan", _plan, "memory, traffic and time that a run would need")
    plan.add_argument("config", help="YAML file; of the model only config.json need be there")
    plan.add_argument("overrides", **overrides)
    plan.add_argument("--gpus", type=int, help="training processes; else runtime.world_size")
    plan.add_argument("--hardware", default="h100", help="h100 (the default), or a YAML file")

    report = command("report", _report, "make report.html and figures of a run, or of several")
    report.add_argument("run_dir", nargs="+", help="several are laid over each other")
    report.add_argument("--out", help="the page; report.html in the run, or beside the runs")

    convert = command("convert", None, "turn a model into a Megatron checkpoint or back")
    _add_conversions(convert.add_subparsers(required=True, metavar="DIRECTION"), overrides)

    launch = command("launch", None, "submit runs and sweeps to Slurm")
    add_launch_commands(launch.add_subparsers(required=True, metavar="ACTION"), overrides)

    command("doctor", _doctor, "what is installed and what this machine can run")
    return parser


def _add_conversions(directions, overrides: dict) -> None:
    to_megatron = directions.add_parser("hf-to-megatron", help="write a Megatron checkpoint")
    to_megatron.set_defaults(run=_hf_to_megatron)
    to_megatron.add_argument("--hf", required=True, help="Hugging Face model directory")
    to_megatron.add_argument("overrides", **overrides)

    to_hf = directions.add_parser("megatron-to-hf", help="write a Hugging Face model")
    to_hf.set_defaults(run=_megatron_to_hf)
    to_hf.add_argument("--megatron", required=True, help="checkpoint, e.g. checkpoints/step_000010")
    to_hf.add_argument("--hf", help="where config.json and the tokenizer are, if not there")
    to_hf.add_argument("--shard-size", type=float, default=4, help="GB in one file")
    to_hf.add_argument("overrides", **overrides)

    for direction in (to_megatron, to_hf):
        direction.add_argument("--out", required=True, help="directory to make")
        direction.add_argument("--workers", type=int, help="processes; the cores, at most 4")
        direction.add_argument(
            "--verify",
            nargs="?",
            choices=("auto", "full", "off"),
            const="full",
            default="auto",
            help="compare all tensors and the log-probabilities; auto: less of a large model",
        )


def _train(arguments) -> int:
    from alp_megatron.commands.train import train

    return train(arguments.config, arguments.overrides, arguments.resume)


def _warm_start(arguments) -> int:
    from alp_megatron.commands.warm_start import warm_start

    return warm_start(arguments.config, arguments.overrides, arguments.out)


def _serve(arguments) -> int:
    from alp_megatron.commands.serve import serve

    return serve(arguments)


def _evaluate(arguments) -> int:
    from alp_megatron.commands.evaluate import evaluate

    return evaluate(arguments.model_dir, arguments.overrides)


def _score(arguments) -> int:
    from alp_megatron.studies.score import score

    return score(arguments)


def _mismatch(arguments) -> int:
    from alp_megatron.studies.mismatch.job import mismatch

    return mismatch(arguments)


def _compare(arguments) -> int:
    from alp_megatron.commands.compare import compare

    return compare(arguments)


def _probe(arguments) -> int:
    from alp_megatron.commands.probe import probe

    return probe(arguments)


def _quantize(arguments) -> int:
    from pathlib import Path

    from alp_megatron.conversion.quantize import quantize

    quantize(Path(arguments.hf), Path(arguments.out), arguments.format)
    return 0


def _plan(arguments) -> int:
    from alp_megatron.commands.plan import plan

    return plan(arguments)


def _report(arguments) -> int:
    from pathlib import Path

    from alp_megatron.report.write import write_report

    out = Path(arguments.out) if arguments.out else None
    print(write_report([Path(run_dir) for run_dir in arguments.run_dir], out))
    return 0


def _hf_to_megatron(arguments) -> int:
    from alp_megatron.commands.convert import to_megatron

    return to_megatron(arguments)


def _megatron_to_hf(arguments) -> int:
    from alp_megatron.commands.convert import to_hf

    return to_hf(arguments)


def _doctor(arguments) -> int:
    from alp_megatron.commands.doctor import doctor

    return doctor()


if __name__ == "__main__":
    sys.exit(main())
