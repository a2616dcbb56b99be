"""Hugging Face directory -> Megatron checkpoint; `alp-megatron convert hf-to-megatron` as a script.

python conversion/hf_to_megatron.py --hf DIR --out DIR [model.tensor_model_parallel_size=2 ...]

DIR/state is a distributed checkpoint of Megatron-Core's format `torch_dist`, which programs on
Megatron-Core read with `dist_checkpointing.load` in any layout: the reader's TP, PP, VPP and EP are
free. It holds weights and no optimizer. This project's own trainer does not need it: it starts from
the Hugging Face directory itself, of which each process reads its part.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # The repository instead of this folder, here and in the processes that verify.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])
    from alp_megatron.cli import main

    sys.exit(main(["convert", "hf-to-megatron", *sys.argv[1:]]))
