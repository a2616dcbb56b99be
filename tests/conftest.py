import signal

import pytest

from tests.distributed.workers import Workers

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started with `&` by a shell without jobs:
    # the commands under test would inherit it and could not be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def workers():
    pool = Workers()
    yield pool
    pool.close()
