"""`python -m tests.support.slow_conversion PAUSE ...`: `alp-megatron convert` that can be killed.

It makes small pieces with a pause after each.
"""

import functools
import sys
import time

from alp_megatron.cli import main
from alp_megatron.conversion import to_hf, to_megatron

PIECE_BYTES, TASK_ELEMENTS = 20_000, 5_000


def slowed(write, pause: float):
    @functools.wraps(write)  # processes find it by its name
    def writing(self, piece):
        nbytes = write(self, piece)
        time.sleep(pause)
        return nbytes

    return writing


if __name__ == "__main__":
    to_megatron.PIECE_BYTES, to_hf.TASK_ELEMENTS = PIECE_BYTES, TASK_ELEMENTS
    for writer in (to_megatron.MegatronWriter, to_hf.HfWriter):
        writer.write = slowed(writer.write, float(sys.argv[1]))
    sys.exit(main(["convert", *sys.argv[2:]]))
