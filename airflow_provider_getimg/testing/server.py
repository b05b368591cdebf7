# SPDX-License-Identifier: Apache-2.0
"""The simulator as a child process on a free loopback port, which ends with its parent."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

READY_SECONDS = 60.0
END_SECONDS = 10.0
TAIL_LINES = 25
LOOPBACK = "127.0.0.1"
# -P: don't import a module of that name from the current directory.
PROGRAM = (sys.executable, "-P", "-m", "airflow_provider_getimg.simulator")
#: Command-line prefix that ends the command after it when this process ends, even by SIGKILL.
GUARD = (sys.executable, "-P", str(Path(__file__).with_name("guard.py")))


class SimulatorError(Exception):
    """
    The simulator did not start, or is gone.

    :param message: One sentence: what failed.
    :param log_tail: The last lines of its output, or an empty string.
    """

    def __init__(self, message: str, log_tail: str = "") -> None:
        super().__init__(f"{message}\n{log_tail}" if log_tail else message)
        self.message = message
        self.log_tail = log_tail


class SimulatorProcess:
    """
    A simulator in its own process; a context manager.

    A process, not a thread: whatever a test does to clocks, sockets, logging or the GIL doesn't affect it. The fixtures
    use one for the whole session: see
    :class:`~airflow_provider_getimg.testing.simulator.GetimgSimulator` for how a test uses it.

    :param api_key: The key that it accepts. Default: a random one.
    :param log: File to append its output to. Default: a temporary one. Errors quote its last lines.
    :param env: Its environment. Default: that of this process.
    :param program: Command to start instead; the options are appended.
    :param options: Options of ``getimg-simulator``, with underscores: ``latency=0.5`` is ``--latency=0.5``.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = PROGRAM,
        **options: object,
    ) -> None:
        #: ``http://127.0.0.1:PORT``, once it runs.
        self.url = ""
        self.api_key = api_key or f"sk_{secrets.token_hex(16)}"
        self._log = log
        self._env = env
        self._program = program
        self._options = {"host": LOOPBACK, "port": 0, "api_key": self.api_key} | options
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of its guard, which ends with it; ``None`` before the first start."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether it is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """
        Start it, and wait until it accepts connections.

        :raises SimulatorError: It died, was not ready in 60 seconds, or is already running.
        """
        if self.running:
            raise SimulatorError(f"The simulator is already running at {self.url}.")
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in self._options.items()]
        if self._log:
            self._log.parent.mkdir(parents=True, exist_ok=True)
        # A file without a name is gone with the last process that has it open, killed or not.
        self._output = self._log.open("ab+") if self._log else tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [*GUARD, "--", *self._program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            env=None if self._env is None else dict(self._env),
            # Ctrl-C is for pytest, whose teardown still needs the simulator.
            start_new_session=True,
        )
        try:
            self.url = self._first_line()
        except BaseException:
            self.end()
            raise
        return self

    def check(self) -> None:
        """
        Check that it is running.

        :raises SimulatorError: It has died.
        """
        if not self.running:
            code = self._process.returncode if self._process else None
            raise SimulatorError(f"The simulator has died (exit code {code}).", self.log_tail())

    def end(self) -> None:
        """End it, and wait until it has exited. Can be called more than once."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._output is not None:
            self._output.close()
            self._output = None

    def connection(self, **extra: Any) -> str:
        """
        Return the value for ``AIRFLOW_CONN_GETIMG_DEFAULT``.

        :param extra: The fields of the connection's extra, such as ``timeout=5``.
        """
        fields: dict[str, Any] = {"conn_type": "getimg", "host": self.url, "password": self.api_key}
        return json.dumps(fields | ({"extra": extra} if extra else {}))

    def log_tail(self) -> str:
        """Return the last lines of its output."""
        if self._output is None:
            return ""
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").rstrip().splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def _first_line(self) -> str:
        """Return the URL that it prints once it listens."""
        assert self._process is not None
        assert self._process.stdout is not None
        stdout, line = self._process.stdout.fileno(), b""
        deadline = time.monotonic() + READY_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise SimulatorError(
                        f"The simulator was not ready after {READY_SECONDS:g} s.", self.log_tail()
                    )
                if not (received := os.read(stdout, 4096)):
                    code = self._process.wait()
                    raise SimulatorError(
                        f"The simulator died at start-up (exit code {code}).", self.log_tail()
                    )
                line += received
        return line.decode().strip()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()
