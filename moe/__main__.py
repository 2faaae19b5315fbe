"""`python -m moe <stage>`."""

import sys

from moe.cli import main

sys.exit(main())
