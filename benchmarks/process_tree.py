# SPDX-License-Identifier: Apache-2.0
"""The CPU time of a process and all its descendants, including those that have ended. Needs Linux's ``/proc``."""

from __future__ import annotations

import time

import psutil  # type: ignore[import-untyped]

from devstack import StackError

ATTEMPTS = 100
AGAIN_SECONDS = 0.1


def cpu_seconds(root: int) -> float:
    """Return the user and system time of a process and of all its descendants so far.

    The time of a process that has exited counts toward the one that waited for it. To lose none, the root must be
    a child subreaper, as the guard of :class:`devstack.GuardedProcess` is: orphans become its children, and it waits for them.

    :raises devstack.StackError: Processes start and end too often to add up.
    """
    for _ in range(ATTEMPTS):
        before = _tree(root)
        try:
            total = sum(_cpu_seconds(process) for process in before)
        except psutil.NoSuchProcess:
            total = None
        # A process that ended meanwhile would count twice, or not at all.
        if total is not None and set(before) == set(_tree(root)):
            return total
        time.sleep(AGAIN_SECONDS)
    raise StackError(f"The processes below {root} change too often to add up what they use.")


def _tree(root: int) -> list[psutil.Process]:
    process = psutil.Process(root)
    return [process, *process.children(recursive=True)]


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
