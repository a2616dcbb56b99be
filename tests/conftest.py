import pytest

from tests.distributed.workers import Workers


@pytest.fixture(scope="session")
def workers():
    pool = Workers()
    yield pool
    pool.close()
