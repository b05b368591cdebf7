# SPDX-License-Identifier: Apache-2.0
"""
The connection to the simulator, as an environment variable.

Airflow looks there before its database, and after a secrets backend of the deployment's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from airflow_provider_getimg.testing.simulator import GetimgSimulator

#: Seconds that ``getimg_conn`` waits for a generation. The simulator on the same machine needs none.
DEFAULT_TIMEOUT = 30.0
LOOPBACK_HOSTS = ("127.0.0.1", "localhost")


class ForeignConnectionError(Exception):
    """A secrets backend has a connection of this id, and Airflow asks it first: what a test runs might be billed."""


class GetimgConnection:
    """
    An Airflow connection that leads to the simulator until the end of the test.

    :param conn_id: Its id.
    :raises ForeignConnectionError: Airflow would use another one.
    """

    def __init__(
        self,
        simulator: GetimgSimulator,
        monkeypatch: pytest.MonkeyPatch,
        conn_id: str = "getimg_default",
    ) -> None:
        self.conn_id = conn_id
        self._simulator = simulator
        self._monkeypatch = monkeypatch
        self._timeout = DEFAULT_TIMEOUT
        # The proxy of a developer's shell knows no simulator.
        names = ("no_proxy", "NO_PROXY")
        hosts = [host.strip() for name in names for host in os.environ.get(name, "").split(",")]
        if "*" not in hosts:
            for name in names:
                # Of both, as either may be what is read.
                monkeypatch.setenv(name, ",".join(dict.fromkeys([*filter(None, hosts), *LOOPBACK_HOSTS])))
        self._set()
        self._check_backends()

    @property
    def variable(self) -> str:
        """The name of the environment variable that holds it."""
        return f"AIRFLOW_CONN_{self.conn_id.upper()}"

    @property
    def timeout(self) -> float:
        """Seconds to wait for a generation; can be set. Default 30."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout = seconds
        self._set()

    @property
    def json(self) -> str:
        """The connection itself: the value for another id in ``run_dag(connections=...)``."""
        return self._simulator.process.connection(timeout=self._timeout)

    def _set(self) -> None:
        self._monkeypatch.setenv(self.variable, self.json)

    def _check_backends(self) -> None:
        from airflow.configuration import conf

        sections = {"secrets": "backend", "workers": "secrets_backend"}
        backends = [conf.get(section, option, fallback="") for section, option in sections.items()]
        backend = next((backend for backend in backends if backend), None)
        if backend is None:
            return
        from airflow.providers.common.compat.sdk import BaseHook

        if BaseHook.get_connection(self.conn_id).host != self._simulator.url:
            raise ForeignConnectionError(
                f"The secrets backend {backend} has a connection {self.conn_id!r}, which Airflow takes before the one to the "
                "simulator: what a test runs might be billed. Set getimg_airflow = isolated, or run the tests without "
                "that backend."
            )

    def __repr__(self) -> str:
        return f"<GetimgConnection {self.conn_id!r} to {self._simulator.url}>"
