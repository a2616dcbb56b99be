"""The tokenizer of a model directory: whether it fits the model, and the tokenizer itself."""

from pathlib import Path

from alp_megatron.errors import UserError
from alp_megatron.hf.files import COPY_AGAIN, read_json_object
from alp_megatron.hf.shape import ModelShape


def check_tokenizer(model_dir: Path, shape: ModelShape) -> None:
    """Checks that tokenizer.json can be read, and that its ids lie in the embedding table.

    Raises:
        UserError: naming the file.
    """
    from tokenizers import Tokenizer

    path = model_dir / "tokenizer.json"
    read_json_object(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust reader raises bare Exception, whatever is wrong
        raise UserError(f"{path}: not a tokenizer: {error}; {COPY_AGAIN}.") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest < 0:
        raise UserError(f"{path}: holds no tokens; {COPY_AGAIN}.")
    if largest >= shape.vocab_size:
        raise UserError(
            f"{path}: has the token id {largest}, but config.json's vocab_size is "
            f"{shape.vocab_size}: the tokenizer belongs to another model."
        )


def load_tokenizer(model_dir: str | Path):
    """Returns the tokenizer of a model directory, a Hugging Face fast tokenizer.

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
