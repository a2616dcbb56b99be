"""`alp-megatron quantize` as a script: a quantised checkpoint for vLLM, made with ModelOpt.

python conversion/quantize.py --hf DIR --out DIR [--format fp8_block]
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # The repository instead of this folder, here and in the processes that are started.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])
    from alp_megatron.cli import main

    sys.exit(main(["quantize", *sys.argv[1:]]))
