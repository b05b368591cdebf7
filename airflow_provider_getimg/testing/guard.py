# SPDX-License-Identifier: Apache-2.0
"""
Runs one command, and ends every process that it started, whatever happens to either side.

``python -P guard.py [--grace SECONDS] [--remove PATH] -- COMMAND...``

The guard ends the command and all its descendants when its standard input reaches end-of-file (the
process that started the guard closed the pipe or died, even by SIGKILL); then it deletes the paths.
SIGTERM also ends them, but deletes nothing. If the command exits on its own, the guard ends what it
left behind, and passes its exit code on. If several guards delete one folder, the last to exit
deletes it for good: each has waited for those of its processes that could write there.

Descendants are found by parent, not by process group or environment: Airflow's task runners create
their own process groups, and ``setproctitle`` overwrites ``/proc/PID/environ``. On Linux, the guard
is a "child subreaper", so that even an orphan of an orphan becomes its child.

It runs as a file, so it imports nothing from this project, only psutil, which comes with Airflow.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import time

import psutil  # type: ignore[import-untyped]

PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.05
# SIGKILL can't be refused; a process that survives this long hangs in the kernel.
KILL_DEADLINE_SECONDS = 10.0


def adopt_orphans() -> None:
    """Make orphaned descendants children of this process (Linux; elsewhere a no-op)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[psutil.Process]:
    """Return all descendants of this process, including zombies.

    A zombie isn't gone: the first thread of a Go program may be one while other threads still write.
    """
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def reap() -> dict[int, int]:
    """Reap every child that has exited, including adopted ones, and return exit codes by process id."""
    codes = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes


def send(processes: list[psutil.Process], signal_number: int) -> None:
    """Signal each process that is still running; skip reused process ids."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.send_signal(signal_number)


def end_descendants(grace: float) -> dict[int, int]:
    """Send SIGTERM to all, then SIGKILL to those still alive after ``grace`` seconds."""
    codes = reap()
    told: set[psutil.Process] = set()
    kill_at = time.monotonic() + grace
    give_up_at = kill_at + KILL_DEADLINE_SECONDS
    while left := descendants():
        now = time.monotonic()
        if now > give_up_at:
            break
        if now > kill_at:
            send(left, signal.SIGKILL)
        else:
            # Some may have started after the others got the signal.
            send([process for process in left if process not in told], signal.SIGTERM)
            told.update(left)
        time.sleep(POLL_SECONDS)
        codes |= reap()
    return codes


def remove(path: str) -> None:
    """Delete a file or a directory, if it still exists."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    shutil.rmtree(path, ignore_errors=True)


def spawn(command: list[str]) -> int:
    """Start the command with default signal dispositions and nothing on its standard input."""
    return os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        setsigdef=[signal.SIGINT, signal.SIGTERM],
    )


def wait_for_end(pid: int, wakeup: int) -> tuple[int | None, bool]:
    """Block until the command exits or must end; return its exit code, and whether to delete the paths."""
    while True:
        ready, _, _ = select.select([0, wakeup], [], [])
        is_closed = 0 in ready and not os.read(0, 1024)
        # Whatever `select` says: a SIGTERM sent before the input was closed may have been delivered after it looked.
        with contextlib.suppress(BlockingIOError):
            if signal.SIGTERM in os.read(wakeup, 1024):
                return None, False
        codes = reap()
        if pid in codes:
            return codes[pid], False
        if is_closed:
            return None, True


def main() -> int:
    """Run the command line in the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--remove", action="append", default=[])
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()

    wakeup, wakeup_write = os.pipe()
    os.set_blocking(wakeup, False)
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write)
    # Without a Python signal handler, nothing is written to the wakeup pipe.
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    # Ctrl-C is for the foreground program, which decides what ends and when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    adopt_orphans()
    pid = spawn(arguments.command)
    code, remove_paths = wait_for_end(pid, wakeup)
    codes = end_descendants(arguments.grace)
    # Only after the last process that writes there has exited, or the directory comes back. Not if the
    # command died on its own: its log may be there, and the parent is about to read it.
    for path in arguments.remove if remove_paths else ():
        remove(path)
    if code is None:
        code = codes.get(pid, 0)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
