# SPDX-License-Identifier: Apache-2.0
"""Keeps Airflow's ``execution_timeout`` from interrupting the code that reads and records a paid response."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable


class PostponedAlarm:
    """
    Postpones ``execution_timeout`` from :meth:`start` to the end of the ``with`` block, and aborts the request in flight.

    Airflow raises the timeout from a SIGALRM handler, at any line of the task: also after a response's last byte has arrived and
    before it is recorded. Other threads than the main one are not interrupted.

    :param abort: Aborts the request in flight, or keeps it from being sent.
    """

    def __init__(self, abort: Callable[[], object]) -> None:
        self._abort = abort
        self._handler: Any = None
        #: Whether the time is up: the block ends with Airflow's exception.
        self.rang = False

    def __enter__(self) -> Self:
        return self

    def start(self) -> None:
        """Postpone the alarm from now on."""
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGALRM, self._ring)

    def _ring(self, *_: object) -> None:
        self.rang = True
        self._abort()

    def stop(self) -> None:
        """Let the alarm ring as usual from now on. One that was postponed still waits for the end of the block."""
        if self._handler is not None:
            signal.signal(signal.SIGALRM, self._handler)
            self._handler = None

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        if self.rang:
            signal.raise_signal(signal.SIGALRM)
