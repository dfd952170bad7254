"""`python -m minidl` is the command `minidl`."""

import sys

from minidl.train.command_line import main

sys.exit(main())
