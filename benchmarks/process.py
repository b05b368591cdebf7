# SPDX-License-Identifier: Apache-2.0
"""Time, CPU and memory used by this process or by a child. Needs Linux's ``/proc``."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import resource
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from devstack import StackError
from devstack.process import tail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SAMPLE_SECONDS = 0.02
#: A process that takes longer is killed.
LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class Usage:
    """The resources that a piece of work used.

    :param seconds: Wall time.
    :param cpu_seconds: User and system time of all threads.
    :param idle_bytes: Resident memory before the work.
    :param peak_bytes: Peak resident memory.
    """

    seconds: float
    cpu_seconds: float
    idle_bytes: int
    peak_bytes: int

    @property
    def extra_bytes(self) -> int:
        """The peak memory above that of the idle process."""
        return max(0, self.peak_bytes - self.idle_bytes)


class Measurement:
    """Measures this process from entry to exit, and then sets ``usage``."""

    usage: Usage

    def __enter__(self) -> Self:
        # Resets the high-water mark to what is resident now, so that peaks during the imports don't count.
        Path("/proc/self/clear_refs").write_text("5")
        self._idle = memory("VmRSS")
        self._cpu = _own_cpu()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._began
        self.usage = Usage(seconds, _own_cpu() - self._cpu, self._idle, memory("VmHWM"))


def do_job(functions: Mapping[str, Callable[[dict[str, Any]], Callable[[], object]]]) -> None:
    """Run the job described in the file on the command line, and write its usage to the file that the job names.

    :param functions: By name. Each prepares a job, and returns the work to measure.
    """
    job = json.loads(Path(sys.argv[1]).read_text())
    work = functions[job["by"]](job)
    with Measurement() as measurement:
        work()
    Path(job["result"]).write_text(json.dumps(asdict(measurement.usage)))


def import_provider() -> None:
    """Import what the operators import at run time, so that it isn't measured."""
    import airflow_provider_getimg

    for part in ("api", "batch", "durable", "operators", "s3", "transfers"):
        package = importlib.import_module(f"{airflow_provider_getimg.__name__}.{part}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


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
    """Run a command to completion, and return what it used.

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
            # Not Popen.wait: only wait4 returns what this child used. Its ru_maxrss is useless: on Linux, a new
            # program inherits the high-water mark of the process that started it.
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
