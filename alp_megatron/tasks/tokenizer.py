"""The arithmetic task's character-level tokenizer and its model's config.json.

    python -m alp_megatron.tasks.tokenizer configs/models/arithmetic

writes both again, in the form that every Hugging Face model directory has.
"""

import sys
from pathlib import Path

from alp_megatron.errors import UserError

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


def load_tokenizer(model_dir: str | Path):
    """The tokenizer of a model directory.

    Raises:
        UserError: it cannot be read, or has no chat template to lay prompts out with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True)
    except Exception as error:  # transformers and its Rust reader raise many kinds
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{model_dir}: the tokenizer cannot be read: {reason}.") from error
    if not tokenizer.chat_template:
        raise UserError(
            f"{model_dir}: the tokenizer has no chat_template; add one to tokenizer_config.json."
        )
    return tokenizer


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m alp_megatron.tasks.tokenizer OUT_DIR")
    write_model_files(sys.argv[1])
