"""Megatron checkpoint -> Hugging Face directory; `alp-megatron convert megatron-to-hf` as a script.

python conversion/megatron_to_hf.py --megatron DIR --out DIR

DIR is what hf_to_megatron made, a `checkpoints/step_N` of a run, or any distributed checkpoint of
the format `torch_dist` whose config.json is named with --hf, written in whatever layout.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # The repository instead of this folder, here and in the processes that verify.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])
    from alp_megatron.cli import main

    sys.exit(main(["convert", "megatron-to-hf", *sys.argv[1:]]))
