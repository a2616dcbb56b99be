"""A vLLM server's process: `python -m alp_megatron.rollout.server.process SOCKET PARENT TRANSPORT`.

SOCKET is an inherited descriptor that listens already, PARENT the process that this one must not
outlive, TRANSPORT a name in RECEIVERS of vllm/receivers.py. The rest of
the settings comes through the environment, for the engine's process that vLLM makes needs them as
well.

What answers is vLLM's own API server, as `vllm serve` starts it.
"""

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile

from alp_megatron.runtime.launcher import die_with_parent

_PARENT = "ALP_MEGATRON_SERVER_PARENT"
# vLLM spawns its engine's process, and that one its workers. Each imports this module first of
# all, and must not outlive its own parent either.
if __name__ == "__mp_main__":
    die_with_parent(int(os.environ[_PARENT]))
os.environ[_PARENT] = str(os.getpid())


def arguments(transport: str):
    """Returns what `vllm serve` would have parsed from its command line."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from alp_megatron.rollout.settings import settings_from_environment
    from alp_megatron.rollout.vllm.arguments import vllm_arguments
    from alp_megatron.rollout.vllm.patches import apply_patches

    settings = settings_from_environment()
    apply_patches(settings.model_dir)
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    chosen = vllm_arguments(settings) | {
        "tokens_only": True,
        "weight_transfer_config": {"backend": f"alp_{transport}"},
        "worker_extension_cls": "alp_megatron.rollout.vllm.receivers.WorkerExtension",
        "disable_uvicorn_access_log": True,
        "uvicorn_log_level": "warning",
    }
    for name, value in chosen.items():
        assert hasattr(parsed, name), name
        setattr(parsed, name, value)
    return parsed


def _temporary_directory() -> str:
    """Not one with a long name: vLLM's sockets are called DIRECTORY/alp-vllm-12345678/UUID, in 107
    bytes at most.
    """
    directory = tempfile.gettempdir()
    return directory if len(directory.encode()) <= 50 else "/tmp"


async def serve(listener: socket.socket, transport: str) -> None:
    from vllm.entrypoints.launchers.api_server.entry import (
        build_and_serve,
        build_async_engine_client,
    )
    from vllm.usage.usage_lib import UsageContext

    # vLLM's sockets and rendezvous files would outlive an abrupt end: they get a directory of
    # their own, which can go once both ends have them open.
    scratch = tempfile.mkdtemp(prefix="alp-vllm-", dir=_temporary_directory())
    os.environ["TMPDIR"] = os.environ["VLLM_RPC_BASE_PATH"] = scratch
    try:
        parsed = arguments(transport)
        parsed.host, parsed.port = listener.getsockname()[:2]
        # The library's context: its batch limits, so that a server computes what LLM would.
        context = build_async_engine_client(parsed, usage_context=UsageContext.LLM_CLASS)
        async with context as client:
            await client.collective_rpc("leave_scratch")
            shutil.rmtree(scratch)
            address = f"http://{parsed.host}:{parsed.port}"
            done = await build_and_serve(client, address, listener, parsed)
        await done
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    descriptor, parent, transport = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # Ctrl-C reaches every process of the console; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    asyncio.run(serve(socket.socket(fileno=descriptor), transport))


if __name__ == "__main__":
    main()
