"""`alp-megatron launch submit` as a script: submits one run to Slurm.

python launch/submit.py CONFIG --cluster CLUSTER [--dry-run] [key=value ...]
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # The repository instead of this folder, here and in the processes that are started.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])
    from alp_megatron.cli import main

    sys.exit(main(["launch", "submit", *sys.argv[1:]]))
