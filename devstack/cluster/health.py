# SPDX-License-Identifier: Apache-2.0
"""Whether Airflow's components do what they are for: asked of its API server, and of each worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from celery import Celery  # type: ignore[import-untyped]
from kombu.exceptions import OperationalError  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Collection

PING_SECONDS = 2.0
# The components in the API server's report, by their names in the compose file.
HEARTBEATS = {
    "postgres": "metadatabase",
    "scheduler": "scheduler",
    "dag-processor": "dag_processor",
    "triggerer": "triggerer",
}


class Health:
    """The state of the components, as seen from outside.

    :param url: The API server.
    :param broker_url: The broker, through which workers are asked.
    """

    def __init__(self, url: str, broker_url: str = "") -> None:
        self._url = url
        self._broker_url = broker_url

    def api_server_responds(self) -> bool:
        """Whether the API server answers."""
        return bool(self._report())

    def without_heartbeat(self) -> set[str]:
        """Name the components that have sent no heartbeat lately, as far as the API server knows."""
        report = self._report()
        return {
            name for name, key in HEARTBEATS.items() if (report.get(key) or {}).get("status") != "healthy"
        }

    def silent(self, workers: Collection[str]) -> set[str]:
        """Name those of the workers that don't answer. It takes two seconds unless all do."""
        return set(workers) - self._ping(limit=len(workers))

    def worker_responds(self, name: str) -> bool:
        """Whether this worker takes orders through the broker."""
        return name in self._ping(limit=1, destination=[f"celery@{name}"])

    def _ping(self, **options: Any) -> set[str]:
        """Return the names of the workers that respond."""
        # New each time: what an application holds on to may lead to a broker that was killed since.
        app = Celery(broker=self._broker_url)
        try:
            with app.connection_for_write() as connection:
                lost = (OperationalError, *connection.recoverable_connection_errors)
                try:
                    replies = app.control.ping(connection=connection, timeout=PING_SECONDS, **options)
                except lost:
                    return set()
        finally:
            app.close()
        return {node.partition("@")[2] for reply in replies or [] for node in reply}

    def _report(self) -> dict[str, Any]:
        try:
            response = httpx.get(f"{self._url}/api/v2/monitor/health", trust_env=False, timeout=10)
            report: dict[str, Any] = response.raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return {}
        return report
