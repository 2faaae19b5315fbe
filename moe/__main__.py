"""`python -m moe <stage>`."""

import os
import sys
import traceback
from typing import NoReturn

from moe import interruption, launch


def main() -> NoReturn:
    """Run one stage as a process of its own."""
    status = 1
    try:
        interruption.obey()
        with interruption.held_back():  # code that is cut short while it loads fails in strange ways
            from moe import cli
        status = cli.main()
    except SystemExit:  # argparse has spoken
        raise
    except BaseException as error:
        stop = interruption.cause(error)
        if stop:
            status = interruption.report(stop)
        else:
            traceback.print_exc()
    interruption.ignore()
    if status and launch.is_rank():
        # An orderly end would wait for ranks that are gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
