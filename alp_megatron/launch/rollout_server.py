"""A task on a rollout node.

    python -m alp_megatron.launch.rollout_server CONFIG READY_DIR FIRST_PORT

Serves as `alp-megatron serve` does, on one GPU of the node, and starts the server again when it
ends: the trainer waits for its address. READY_DIR gets a file named after the task when the server
has answered for the first time; one that never does is not tried again.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from alp_megatron.runtime.launcher import die_with_parent


def main() -> int:
    config, ready_dir, first_port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    task = int(os.environ["SLURM_PROCID"])
    ready_file, parent = ready_dir / str(task), os.getpid()
    command = [sys.executable, "-m", "alp_megatron", "serve", config, "--host", "0.0.0.0",
               "--port", str(first_port + task), "--ready-file", str(ready_file)]  # fmt: skip
    environment = os.environ | own_gpu(os.environ)
    # The end of the job is no failure: with another code srun would kill the other servers at once.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        server = subprocess.Popen(
            command, env=environment, preexec_fn=lambda: die_with_parent(parent)
        )
        try:
            code = server.wait()
        finally:  # SIGTERM: Slurm kills what is left of the task when it has waited long enough
            server.terminate()
            server.wait()
        if not ready_file.exists():
            return code
        print(f"the server of task {task} ended with {code}; it is started again.", flush=True)


def own_gpu(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variable that leaves a task one of the GPUs that Slurm gave its node's tasks."""
    gpus = environment.get("CUDA_VISIBLE_DEVICES")
    if not gpus:
        return {}
    return {"CUDA_VISIBLE_DEVICES": gpus.split(",")[int(environment["SLURM_LOCALID"])]}


if __name__ == "__main__":
    sys.exit(main())
