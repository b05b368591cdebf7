# SPDX-License-Identifier: Apache-2.0
"""One server of the cluster, which can be killed, stopped, and restarted on the same port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devstack.cluster.memory import Memory, memory_of
from devstack.process import GuardedProcess, StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

RESTART_SECONDS = 60.0


class Component:
    """A server of the cluster.

    :param name: Its name in the compose file; for a worker, with its number appended.
    :param log: File to append its output to, at every start.
    :param responds: Checks whether it is ready; by default it is as soon as it runs.
    :param remove: A folder to delete if this process is killed.
    :param healthcheck: The command line of its health check.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        env: Mapping[str, str],
        log: Path,
        *,
        cwd: Path | None = None,
        responds: Callable[[], bool] | None = None,
        remove: Path | None = None,
        healthcheck: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.command = command
        self.env = dict(env)
        self.log = log
        self.process: GuardedProcess | None = None
        self._cwd = cwd
        self._responds = responds
        self._remove = [remove] if remove else []
        self.healthcheck = healthcheck

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.running

    def responds(self) -> bool:
        """Whether it is ready, as seen from outside."""
        return self.running if self._responds is None else self._responds()

    def start(self) -> None:
        """Start it without waiting until it is ready."""
        if self.running:
            raise StackError(f"{self.name} is already running.")
        self.process = GuardedProcess(
            self.name,
            self.command,
            log=self.log,
            env=self.env,
            cwd=self._cwd,
            grace=3.0,
            remove=self._remove,
        )

    def wait_until_ready(self, timeout: float = RESTART_SECONDS) -> None:
        """Wait until it is ready.

        :raises devstack.StackError: It died or was not ready in time.
        """
        assert self.process is not None, "start() comes first"
        self.process.wait_until(self.responds, timeout=timeout)

    def run(self, timeout: float) -> int:
        """Run it to its end, and return its exit code.

        :raises devstack.StackError: It did not end in time.
        """
        self.start()
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        finally:
            self.end()

    def kill(self) -> None:
        """Kill it and all its descendants at once with SIGKILL, as a power failure would."""
        if self.process is not None:
            self.process.kill()

    def end(self) -> None:
        """Send SIGTERM, and three seconds later SIGKILL to what still runs."""
        if self.process is not None:
            self.process.end(keep=True)

    def restart(self) -> None:
        """Kill it, start it again on its port, and wait until it is ready."""
        self.kill()
        self.start()
        self.wait_until_ready()

    def memory(self) -> Memory:
        """Measure the memory of its process tree."""
        return memory_of(self.process.descendants() if self.process is not None else [])
