# SPDX-License-Identifier: Apache-2.0
"""One server of the cluster: it can be killed, ended and started again, on the same port."""

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

    :param name: As in the compose file; a worker's has its number behind it.
    :param log: Gets its output, that of all its lives.
    :param responds: Whether it does what it is for.
    :param remove: A folder to delete should this process be killed.
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
        """Whether it does what it is for, as seen from outside."""
        return self.running if self._responds is None else self._responds()

    def start(self) -> None:
        """Start it without waiting for it."""
        if self.running:
            raise StackError(f"{self.name} runs already.")
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
        """Wait until it does what it is for.

        :raises devstack.StackError: It died or was not ready in time.
        """
        assert self.process is not None, "start() comes first"
        self.process.wait_until(self.responds, timeout=timeout)

    def run(self, timeout: float) -> int:
        """Run it to its end, and return its exit code.

        :raises devstack.StackError: It has not ended in time.
        """
        self.start()
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        finally:
            self.end()

    def kill(self) -> None:
        """End it and all its descendants with SIGKILL at once, as if its machine had lost power."""
        if self.process is not None:
            self.process.kill()

    def end(self) -> None:
        """End it: SIGTERM, and SIGKILL to what is left three seconds later."""
        if self.process is not None:
            self.process.end(keep=True)

    def restart(self) -> None:
        """End it with SIGKILL, start it again on its port, and wait until it is ready."""
        self.kill()
        self.start()
        self.wait_until_ready()

    def memory(self) -> Memory:
        """Measure the memory of its process tree."""
        return memory_of(self.process.descendants() if self.process is not None else [])
