# SPDX-License-Identifier: Apache-2.0
"""
The connection to the simulator, as an environment variable.

Airflow looks there after the deployment's secrets backend and before its database.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from airflow_provider_getimg.testing.simulator import GetimgSimulator

#: Seconds that ``getimg_conn`` waits for a generation. The simulator on the same machine responds immediately.
DEFAULT_TIMEOUT = 30.0
LOOPBACK_HOSTS = ("127.0.0.1", "localhost")


class ForeignConnectionError(Exception):
    """A secrets backend, which Airflow asks first, has a connection with this id: a test might be billed."""


class GetimgConnection:
    """
    An Airflow connection that points to the simulator until the end of the test.

    :param conn_id: Its id.
    :raises ForeignConnectionError: Airflow would use another connection.
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
        # A proxy from the developer's shell can't reach the simulator.
        names = ("no_proxy", "NO_PROXY")
        hosts = [host.strip() for name in names for host in os.environ.get(name, "").split(",")]
        if "*" not in hosts:
            for name in names:
                # Merge both into each: a client may read either.
                monkeypatch.setenv(name, ",".join(dict.fromkeys([*filter(None, hosts), *LOOPBACK_HOSTS])))
        self._set()
        self._check_backends()

    @property
    def variable(self) -> str:
        """The name of its environment variable."""
        return f"AIRFLOW_CONN_{self.conn_id.upper()}"

    @property
    def timeout(self) -> float:
        """Seconds to wait for a generation. Can be set. Default: 30."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout = seconds
        self._set()

    @property
    def json(self) -> str:
        """The connection as JSON: the value to use for another id in ``run_dag(connections=...)``."""
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
