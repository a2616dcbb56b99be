"""`alp-megatron convert` with small pieces and a pause after each, so that it can be killed."""

import functools
import sys
import time

import conversion.megatron_writer
import conversion.to_hf
from alp_megatron.cli import main

conversion.megatron_writer.PIECE_BYTES = 20_000
conversion.to_hf.TASK_ELEMENTS = 5_000
PAUSE = float(sys.argv[1])


def slowed(write):
    @functools.wraps(write)  # processes find it by its name
    def writing(self, piece):
        nbytes = write(self, piece)
        time.sleep(PAUSE)
        return nbytes

    return writing


for writer in (conversion.megatron_writer.MegatronWriter, conversion.to_hf.HfWriter):
    writer.write = slowed(writer.write)

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[2:]]))
