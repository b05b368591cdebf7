# SPDX-License-Identifier: Apache-2.0
"""Child processes that become ready or report why not, and never outlive their parent.

They run under the package's own guard, as the test kit's simulator does. This module adds what local servers need:
waiting until one is ready, showing its last log lines, and killing a whole process tree at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Self, TypeVar

import psutil  # type: ignore[import-untyped]

from airflow_provider_getimg.testing.server import GUARD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

POLL_SECONDS = 0.1
KILL_POLL_SECONDS = 0.01
# The guard's own deadline after the grace period (see airflow_provider_getimg/testing/guard.py), plus a margin.
GUARD_EXIT_SECONDS = 12.0
LOG_TAIL_LINES = 25


class StackError(Exception):
    """A local server, or a DAG run on one, failed.

    :param message: One sentence that says what failed.
    :param log_tail: The last lines of its log, or an empty string.
    """

    def __init__(self, message: str, log_tail: str = "") -> None:
        super().__init__(f"{message}\n{log_tail}" if log_tail else message)
        self.message = message
        self.log_tail = log_tail


def tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """Return the last lines of a log file; empty if it doesn't exist."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def is_alive(process: psutil.Process) -> bool:
    """Return whether the process is still running; a zombie is not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class GuardedProcess:
    """A command under a guard that ends the whole process tree on :meth:`end`, or when this process dies.

    :param name: Its name in messages.
    :param command: The program and its arguments; the program is looked up on ``PATH`` of ``env``.
    :param log: File to append standard output and standard error to.
    :param env: The whole environment of the command.
    :param cwd: Its working directory.
    :param grace: Seconds between SIGTERM and SIGKILL.
    :param remove: Files and directories to delete at the end, even if this process is killed.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        grace: float = 5.0,
        remove: Sequence[Path] = (),
    ) -> None:
        self.name = name
        self.log = log
        self._grace = grace
        self._remove = remove
        program = shutil.which(str(command[0]), path=env.get("PATH"))
        if program is None:
            raise StackError(f"{name}: there is no program {command[0]}.")
        guard = [*GUARD, "--grace", str(grace)]
        for path in remove:
            guard += ["--remove", str(path)]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [*guard, "--", program, *map(str, command[1:])],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The guard's process id, which is also the id of its session and process group."""
        return self._guard.pid

    @property
    def running(self) -> bool:
        """Whether the command, or a process that it left behind, still runs."""
        return self._guard.poll() is None

    def wait_until(self, check: Callable[[], T | None], *, timeout: float) -> T:
        """Poll ``check`` until it returns something truthy, and return that.

        :param check: Asks the server; None or False means "not yet".
        :param timeout: Seconds.
        :raises StackError: The process died, or time is up; with the last lines of its log.
        """
        deadline = time.monotonic() + timeout
        while True:
            if result := check():
                return result
            if not self.running:
                raise StackError(
                    f"{self.name} died at start-up (exit code {self._guard.returncode}).",
                    tail(self.log),
                )
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} was not ready after {timeout:g} s.", tail(self.log))
            time.sleep(POLL_SECONDS)

    def wait(self, timeout: float | None = None) -> int:
        """Block until the command has exited on its own, and return its exit code.

        :raises devstack.StackError: It did not exit within ``timeout`` seconds.
        """
        try:
            return self._guard.wait(timeout)
        except subprocess.TimeoutExpired:
            raise StackError(f"{self.name} did not end in {timeout:g} s.", tail(self.log)) from None

    def descendants(self) -> list[psutil.Process]:
        """List the command's processes, without the guard."""
        try:
            found: list[psutil.Process] = psutil.Process(self._guard.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return found

    def kill(self) -> None:
        """Kill the command and all its descendants with SIGKILL, without SIGTERM first. Nothing is deleted."""
        if not self.running:
            return
        # Stop the guard: once the command dies, it would send SIGTERM to the other processes.
        os.kill(self._guard.pid, signal.SIGSTOP)
        while alive := [process for process in self.descendants() if is_alive(process)]:
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(KILL_POLL_SECONDS)
        os.kill(self._guard.pid, signal.SIGCONT)
        self.end(keep=True)

    def end(self, *, keep: bool = False) -> None:
        """End the command and all its descendants, and wait for that. Can be called more than once.

        :param keep: Delete nothing.
        """
        stdin = self._guard.stdin
        if keep and self.running:
            self._guard.terminate()
        if stdin is not None and not stdin.closed:
            # From here on, the guard works on its own: a second Ctrl-C can't stop the cleanup.
            stdin.close()
        try:
            self._guard.wait(self._grace + GUARD_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.wait()
        # Also here: the guard deletes nothing if the command or the guard itself died on its own.
        for path in () if keep else self._remove:
            with contextlib.suppress(OSError):
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
