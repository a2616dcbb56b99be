"""A verifiable arithmetic task for a character-level model of about a million parameters.

The prompt is `7+8-3+6`; the answer shows its working, `7+8=15;15-3=12;12+6=18`, and the last
number counts. A hash of the problem says whether it is for training or for evaluation, so
the two never meet.

    python -m alp_megatron.tasks.arithmetic configs/models/arithmetic

writes its tokenizer and its model's config.json again, in the form that every Hugging Face model
directory has.
"""

import hashlib
import random
import sys
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

Split = Literal["train", "eval"]
_NUM_OPERANDS = 4
_EVAL_SHARE = 1 / 8


@dataclass(frozen=True)
class Problem:
    """One-digit operands worked from left to right; no result on the way is negative."""

    operands: tuple[int, ...]
    operators: str  # one of + and - between each two operands

    @property
    def text(self) -> str:
        rest = zip(self.operators, self.operands[1:], strict=True)
        return str(self.operands[0]) + "".join(f"{op}{n}" for op, n in rest)

    @property
    def results(self) -> list[int]:
        """The result of each operation; the last is the answer."""
        steps = zip(self.operators, self.operands[1:], strict=True)
        return list(accumulate(steps, lambda r, s: _apply(r, *s), initial=self.operands[0]))[1:]

    @property
    def answer(self) -> int:
        return self.results[-1]

    @property
    def split(self) -> Split:
        digest = hashlib.blake2b(self.text.encode(), digest_size=8).digest()
        return "eval" if int.from_bytes(digest, "big") < _EVAL_SHARE * 2**64 else "train"


def problems(seed: int | str, count: int, split: Split) -> list[Problem]:
    """`count` problems of a split, drawn with replacement; equal arguments give equal lists."""
    rng = random.Random(str(seed))
    drawn: list[Problem] = []
    while len(drawn) < count:
        problem = _draw(rng)
        if problem.split == split:
            drawn.append(problem)
    return drawn


def worked_solution(
    problem: Problem, *, error_rate: float = 0.0, rng: random.Random | None = None
) -> str:
    """The supervised target, such as `7+8=15;15-3=12;12+6=18`, without the end token.

    With probability `error_rate` (above 0 it needs `rng`) it is instead a guess without the
    working, near the answer but wrong, such as `7+8-3+6=19`. A model trained on the mixture
    guesses as often when it is sampled, so that its score stays below 1 - error_rate until
    reinforcement learning teaches it to show its working.
    """
    if rng is not None and rng.random() < error_rate:
        return f"{problem.text}={problem.answer + rng.choice((-2, -1, 1, 2))}"
    lefts = (problem.operands[0], *problem.results[:-1])
    steps = zip(lefts, problem.operators, problem.operands[1:], problem.results, strict=True)
    return ";".join(f"{left}{op}{right}={result}" for left, op, right, result in steps)


def _draw(rng: random.Random) -> Problem:
    while True:
        operands = tuple(rng.randint(1, 9) for _ in range(_NUM_OPERANDS))
        problem = Problem(operands, "".join(rng.choices("+-", k=_NUM_OPERANDS - 1)))
        if min(problem.results) >= 0:
            return problem


def _apply(left: int, op: str, right: int) -> int:
    return left + right if op == "+" else left - right


PAD, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ROLES = ["system", "user", "assistant"]
NEWLINE, SPACE = "\u010a", "\u0120"  # as byte-level BPE writes them
CHARACTERS = [NEWLINE, SPACE, *"0123456789", *"+-*=;"]
VOCABULARY = [PAD, IM_START, IM_END, *ROLES, *CHARACTERS]

# A multiple of 64 divides evenly over any tensor-parallel size; the ids past the
# vocabulary are never a training target.
_EMBEDDING_ROWS = 64

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer():
    """A Qwen2Tokenizer without merges: one token a character, and one for each role name.

    transformers reads the tokenizer of every `qwen2` model as byte-level BPE, whatever class
    the directory names, so it must be one. Characters outside the vocabulary are dropped.
    """
    from transformers import AddedToken, Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(VOCABULARY)},
        merges=[],
        eos_token=IM_END,
        pad_token=PAD,
        additional_special_tokens=[IM_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )
    tokenizer.add_tokens([AddedToken(role, special=False) for role in ROLES])
    return tokenizer


def model_config():
    """The Qwen2 configuration of the arithmetic model: 0.8 M parameters."""
    from transformers import Qwen2Config

    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        vocab_size=_EMBEDDING_ROWS,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        dtype="bfloat16",
        bos_token_id=None,
        eos_token_id=VOCABULARY.index(IM_END),
        pad_token_id=VOCABULARY.index(PAD),
    )


def write_model_files(out_dir: str | Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json, config.json and generation_config.json."""
    from transformers import GenerationConfig

    config = model_config()
    build_tokenizer().save_pretrained(out_dir)
    config.save_pretrained(out_dir)
    generation = GenerationConfig(
        do_sample=True, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    generation.save_pretrained(out_dir)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m alp_megatron.tasks.arithmetic OUT_DIR")
    write_model_files(sys.argv[1])
