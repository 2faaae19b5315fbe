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
        from moe.cli import main  # here, since loading it may be interrupted too

        status = main()
    except (KeyboardInterrupt, interruption.Terminated) as stop:
        status = interruption.report(stop)
    except Exception:
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
