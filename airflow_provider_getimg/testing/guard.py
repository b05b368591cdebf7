# SPDX-License-Identifier: Apache-2.0
"""
Runs one command and ends everything that it started, whatever happens to either side.

``python -P guard.py [--grace SECONDS] [--remove PATH] -- COMMAND...``

The guard ends the command and all its descendants when its standard input reaches its end (the
process that started the guard closed the pipe, or died, by SIGKILL too); then it deletes the paths.
SIGTERM ends them as well, and deletes nothing. The guard also ends what a command leaves behind that
exits by itself, and passes its exit code on. Where several guards delete one folder, the last to end
deletes it for good: each has waited for whatever of its own could write there.

Descendants are found by parenthood, not by process group or environment: Airflow's task runners
make process groups of their own, and ``setproctitle`` overwrites ``/proc/PID/environ``. On Linux
the guard is the "child subreaper", so that even an orphan of an orphan becomes its child.

Run as a file: it imports nothing of this project, and psutil, which comes with Airflow.
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
# SIGKILL can't be refused; what is left after this time hangs in the kernel.
KILL_DEADLINE_SECONDS = 10.0


def adopt_orphans() -> None:
    """Make orphaned descendants children of this process (Linux; elsewhere a no-op)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[psutil.Process]:
    """All descendants of this process, zombies too.

    A zombie isn't gone: the first thread of a Go program may be one while others still write.
    """
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def reap() -> dict[int, int]:
    """Collect every child that has exited, adopted ones too: exit codes by process id."""
    codes = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes


def send(processes: list[psutil.Process], signal_number: int) -> None:
    """Signal each process that still is the one that was found."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.send_signal(signal_number)


def end_descendants(grace: float) -> dict[int, int]:
    """SIGTERM to all, then SIGKILL to whatever is alive after ``grace`` seconds."""
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
            # Some were started only after the others had got the signal.
            send([process for process in left if process not in told], signal.SIGTERM)
            told.update(left)
        time.sleep(POLL_SECONDS)
        codes |= reap()
    return codes


def remove(path: str) -> None:
    """Delete a file or a directory that may be gone already."""
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
        if wakeup in ready and signal.SIGTERM in os.read(wakeup, 1024):
            return None, False
        codes = reap()
        if pid in codes:
            return codes[pid], False
        if 0 in ready and not os.read(0, 1024):
            return None, True


def main() -> int:
    """Run the command line in the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--remove", action="append", default=[])
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()

    wakeup, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write)
    # Without a handler of Python's own the wake-up pipe stays silent.
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    # The terminal's Ctrl-C is for the program in front, which decides what ends and when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    adopt_orphans()
    pid = spawn(arguments.command)
    code, remove_paths = wait_for_end(pid, wakeup)
    codes = end_descendants(arguments.grace)
    # After the last process that writes there, or the directory comes back. Not when the command died by
    # itself: its log may be there, and the parent is about to read it.
    for path in arguments.remove if remove_paths else ():
        remove(path)
    if code is None:
        code = codes.get(pid, 0)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
