"""`alp-megatron convert` with small pieces and a pause after each, so that it can be killed."""

import functools
import sys
import time

from alp_megatron.cli import main
from alp_megatron.conversion import to_hf, to_megatron

to_megatron.PIECE_BYTES = 20_000
to_hf.TASK_ELEMENTS = 5_000
PAUSE = float(sys.argv[1])


def slowed(write):
    @functools.wraps(write)  # processes find it by its name
    def writing(self, piece):
        nbytes = write(self, piece)
        time.sleep(PAUSE)
        return nbytes

    return writing


for writer in (to_megatron.MegatronWriter, to_hf.HfWriter):
    writer.write = slowed(writer.write)

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[2:]]))
