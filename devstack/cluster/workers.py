# SPDX-License-Identifier: Apache-2.0
"""Asks the Celery workers, through the broker, whether they respond."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import Celery  # type: ignore[import-untyped]
from kombu.exceptions import OperationalError  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

PING_SECONDS = 2.0


def silent_workers(broker_url: str, workers: AbstractSet[str]) -> AbstractSet[str]:
    """Return those of the workers that don't respond. This takes two seconds unless all do."""
    # A new application each time: an old one may still hold a connection to a broker that was killed.
    app = Celery(broker=broker_url)
    try:
        with app.connection_for_write() as connection:
            lost = (OperationalError, *connection.recoverable_connection_errors)
            try:
                replies = app.control.ping(
                    destination=[f"celery@{name}" for name in workers],
                    limit=len(workers),
                    connection=connection,
                    timeout=PING_SECONDS,
                )
            except lost:
                return workers
    finally:
        app.close()
    return workers - {node.partition("@")[2] for reply in replies or [] for node in reply}
