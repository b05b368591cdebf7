# SPDX-License-Identifier: Apache-2.0
"""What a process has used: time, CPU and memory, of this one or of a child. Needs Linux's ``/proc``."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from devstack import StackError
from devstack.process import tail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Usage:
    """What one piece of work took.

    :param seconds: Wall time.
    :param cpu_seconds: User and system time, of all threads.
    :param idle_bytes: Resident memory before.
    :param peak_bytes: The most resident memory at any time.
    """

    seconds: float
    cpu_seconds: float
    idle_bytes: int
    peak_bytes: int

    @property
    def extra_bytes(self) -> int:
        """The most memory that the work took above an idle process."""
        return max(0, self.peak_bytes - self.idle_bytes)


class Measurement:
    """Measures this process from entry to exit; ``usage`` is there after that."""

    usage: Usage

    def __enter__(self) -> Self:
        # Sets the high-water mark back to what is resident now: what the imports took at times is not the work's.
        Path("/proc/self/clear_refs").write_text("5")
        self._idle = memory("VmRSS")
        self._cpu = _own_cpu()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._began
        self.usage = Usage(seconds, _own_cpu() - self._cpu, self._idle, memory("VmHWM"))


def memory(name: str, pid: int | str = "self") -> int:
    """Return a field of ``/proc/PID/status`` in bytes, 0 for a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run(command: Sequence[str | Path], *, env: Mapping[str, str], log: Path, limit: float) -> Usage:
    """Run a command to its end and return what the whole of it used.

    :param log: File for its output.
    :param limit: Seconds after which it is killed.
    :raises devstack.StackError: It failed or took too long; with the last lines of its output.
    """
    with log.open("wb") as output:
        began = time.perf_counter()
        child = subprocess.Popen(
            [str(part) for part in command],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        ended = threading.Event()
        peaks = [0]
        sampler = threading.Thread(target=_sample, args=(child.pid, ended, peaks, began + limit))
        sampler.start()
        try:
            # Not Popen.wait: only wait4 tells what this child used. Its ru_maxrss is no use, as Linux hands
            # on to a new program the high-water mark of the process that started it.
            _, status, used = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - began
            child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            ended.set()
            if child.returncode is None:
                child.kill()
                child.wait()
            sampler.join()
    if child.returncode:
        reason = f"took more than {limit:g} s" if seconds > limit else f"failed ({child.returncode})"
        raise StackError(f"{Path(command[0]).name} {reason}.", tail(log))
    return Usage(seconds, used.ru_utime + used.ru_stime, 0, peaks[0])


def _sample(pid: int, ended: threading.Event, peaks: list[int], deadline: float) -> None:
    while not ended.wait(SAMPLE_SECONDS):
        peaks[0] = max(peaks[0], memory("VmHWM", pid))
        if time.perf_counter() > deadline:
            os.kill(pid, 9)
            return
