"""The engine's process: `python -m alp_megatron.rollout.vllm.process CHANNEL BUFFER PARENT`.

CHANNEL and BUFFER are inherited descriptors, PARENT is the client's process id. It serves one
request after another until the channel ends, and cannot outlive the client: Linux kills it when
the client dies.
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection

from alp_megatron.errors import UserError
from alp_megatron.runtime.launcher import die_with_parent


def pulled_buckets(channel: Connection) -> Iterator[list]:
    """Asks the client for bucket after bucket; None ends them."""
    while True:
        channel.send(("more", None))
        bucket = channel.recv()
        if bucket is None:
            return
        yield bucket


def serve(channel: Connection, buffer_fd: int) -> None:
    # The heavy imports come after die_with_parent, so that an early end is noticed as well.
    from alp_megatron.rollout.vllm.worker import VllmWorker
    from alp_megatron.weights.transport import SharedBuffer, unpack

    settings, capacity = channel.recv()
    worker = VllmWorker(settings)
    buffer = SharedBuffer(buffer_fd, capacity)
    channel.send(("done", None))
    while True:
        method, arguments = channel.recv()
        try:
            if method == "update_weights":
                tensors = unpack(pulled_buckets(channel), buffer)
                result = worker.update_weights(tensors, **arguments)
            else:
                result = getattr(worker, method)(**arguments)
        except (EOFError, OSError):
            raise
        except Exception as error:
            traceback.print_exc()
            channel.send(("error", str(error)))
        else:
            channel.send(("done", result))


def main() -> None:
    channel_fd, buffer_fd, parent = map(int, sys.argv[1:])
    # Ctrl-C reaches every process of the console; the client decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    channel = Connection(channel_fd)
    try:
        serve(channel, buffer_fd)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The client closed the channel: that is how it ends this process. Nothing is left to
        # tidy up, and vLLM's own teardown would take seconds.
        os._exit(0)
    except UserError as error:
        channel.send(("user error", str(error)))
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        channel.send(("error", f"{type(error).__name__}: {error}"))
        sys.exit(1)


if __name__ == "__main__":
    main()
