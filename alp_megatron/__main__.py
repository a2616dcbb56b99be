"""`python -m alp_megatron`: the command, where no script of it is installed."""

import sys

from alp_megatron.cli import main

sys.exit(main())
