# SPDX-License-Identifier: Apache-2.0
"""The switch that stops sending requests."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import KilledError
from airflow_provider_getimg.api.signals import call_from_handler

if TYPE_CHECKING:
    from airflow_provider_getimg.api.errors import GetimgError


class Stop:
    """Whether to stop sending requests, and why. Safe to set from a signal handler."""

    def __init__(self) -> None:
        #: Set once sending must stop.
        self.event = threading.Event()
        self._reasons: list[GetimgError] = []

    @property
    def reason(self) -> GetimgError | None:
        """The first reason given for stopping; None if there is none yet."""
        return self._reasons[0] if self._reasons else None

    @property
    def is_killed(self) -> bool:
        """Whether the task was terminated: whatever is in flight has little time left."""
        return any(isinstance(reason, KilledError) for reason in self._reasons)

    def set(self, reason: GetimgError) -> None:
        """Stop sending."""
        self._reasons.append(reason)
        call_from_handler(self.event.set)
