# SPDX-License-Identifier: Apache-2.0
"""The simulator's command, for a parent that may die: it ends when its standard input does.

The pipe is closed by the kernel when the parent ends, also by SIGKILL, so that no test run leaves a server behind.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

# For a server that is told to end by a signal; it takes milliseconds.
GRACE_SECONDS = 5.0


def end_with_parent() -> None:
    """Wait for the end of standard input, then end this process."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_SECONDS)
    os._exit(1)


def main() -> int:
    """Run ``getimg-simulator`` with the options of the command line."""
    threading.Thread(target=end_with_parent, name="end-with-parent", daemon=True).start()
    from airflow_provider_getimg.simulator.__main__ import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
