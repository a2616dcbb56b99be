import pytest

from tests.models import make_model


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory):
    # 61 is odd: the embedding is padded under TP 2.
    return make_model(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False, vocab_size=61)
