"""`alp-megatron warm-start`: makes a base model by supervised training on worked solutions."""

import random
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from alp_megatron.check.validate import validate
from alp_megatron.commands.arguments import add_config
from alp_megatron.config.layout import world_size
from alp_megatron.config.load import load_config, resolved_yaml
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.files import partial_of
from alp_megatron.runtime.launcher import launch

# The model first learns to work a problem out, then from text with wrong guesses in it.
_CLEAN_SHARE = 0.75


def add_arguments(parser: ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--out", required=True, help="Hugging Face model directory to make")


def run(arguments: Namespace) -> int:
    """Trains `trainer.steps` updates from random weights; `--out` becomes a Hugging Face model.

    The architecture and the tokenizer are those of `model.path`; weights there are not read.
    """
    config, out = load_config(arguments.config, arguments.overrides), arguments.out
    if Path(out).exists():
        raise UserError(f"--out {out} exists: choose another name or remove it.")
    if config.task.name != "arithmetic":
        raise UserError("warm-start knows worked solutions of task.name=arithmetic only.")
    with tempfile.TemporaryDirectory() as directory:
        initial = Path(directory) / "initial"
        _random_model(config, initial)
        config.model.path = str(initial)
        validate(config, for_training=False)
        resolved = Path(directory) / "config.yaml"
        resolved.write_text(resolved_yaml(config))
        return launch(__name__, [str(resolved), out], world_size(config))


def _random_model(config: Config, directory: Path) -> None:
    """Saves transformers' initialisation: the same weights whatever the layout of the training."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(config.seed)
    hf = AutoConfig.from_pretrained(config.model.path)
    AutoModelForCausalLM.from_config(hf).to(hf.dtype).save_pretrained(directory)
    AutoTokenizer.from_pretrained(config.model.path).save_pretrained(directory)


def _job(config: Config, rank, out: str) -> None:
    from alp_megatron.data.microbatch import Sequence
    from alp_megatron.hf.tokenizer import load_tokenizer
    from alp_megatron.learner.learner import Learner, gather_from_replicas, replica_microbatches
    from alp_megatron.tasks.arithmetic import problems, worked_solution
    from alp_megatron.tasks.task import arithmetic_item
    from alp_megatron.weights.export import WeightExport
    from alp_megatron.weights.hf_model import save_hf

    learner = Learner(config, rank.device)
    tokenizer = load_tokenizer(config.model.path)
    for step in range(config.trainer.steps):
        slip_rate = config.task.slip_rate if step >= _CLEAN_SHARE * config.trainer.steps else 0.0
        rng = random.Random(f"{config.seed}:{step}")
        sequences = []
        for index, problem in enumerate(
            problems(f"{config.seed}:{step}", config.trainer.global_batch_size, "train")
        ):
            prompt = arithmetic_item(tokenizer, problem).prompt_ids
            text = worked_solution(problem, error_rate=slip_rate, rng=rng)
            target = [*tokenizer.encode(text), tokenizer.eos_token_id]
            sequences.append(Sequence(index, prompt + target, first_predicted=len(prompt)))
        count = sum(len(s.token_ids) - s.first_predicted for s in sequences)

        def loss(logprobs, entropies, batch, count=count):
            value = -logprobs.sum() / count
            return value, {"loss": float(value.detach())}

        result = learner.update(replica_microbatches(learner, sequences), 1.0, loss)
        total = sum(kept["loss"] for kept in gather_from_replicas(result.kept))
        if rank.is_first and (step + 1) % 50 == 0:
            print(f"step {step + 1}/{config.trainer.steps}  loss {total:.4f}", flush=True)

    partial = partial_of(Path(out))
    export = WeightExport(learner.chunks, learner.hf["model_type"])
    save_hf(export, config.model.path, partial, learner.rollout_dtype)
    if rank.is_first:
        partial.rename(out)


if __name__ == "__main__":
    from alp_megatron.runtime.process import run_process

    sys.exit(run_process(load_config(sys.argv[1]), _job, sys.argv[2]))
