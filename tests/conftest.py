import signal

import pytest

from tests.support.layouts import some_sequences
from tests.support.models import SHAPES, hf_logprobs, make_model
from tests.support.workers import Workers

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started with `&` by a shell without jobs:
    # the commands under test would inherit it and could not be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def workers():
    pool = Workers()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory):
    # 61 is odd: the embedding is padded under TP 2.
    return make_model(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False, vocab_size=61)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """Name in SHAPES -> (directory, transformers' log-probabilities of some sequences)."""
    made = {}

    def get(name):
        if name not in made:
            directory = make_model(tmp_path_factory.mktemp("family"), SHAPES[name])
            made[name] = directory, [hf_logprobs(directory, s) for s in some_sequences()]
        return made[name]

    return get
