# SPDX-License-Identifier: Apache-2.0
"""Logs the progress of a batch at regular intervals."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from airflow.sdk.types import Logger

SECONDS = 15.0


class Progress:
    """
    The progress of a batch.

    :param total: How many rows there are.
    :param log: Where the progress is logged.
    :param clock: A monotonic clock, in seconds.
    """

    def __init__(self, total: int, log: Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._log = log
        self._clock = clock
        self._started = clock()
        self._logged_at = self._started
        self._lately = (self._started, 0)

    def report(
        self, done: int, failed: int, in_flight: int, billed: Decimal, *, limit: int, waiting_for: str = ""
    ) -> None:
        """
        Log a line if one is due.

        :param waiting_for: What the next request is waiting for; empty if only for a slot.
        """
        now = self._clock()
        if now - self._logged_at < SECONDS:
            return
        since, done_then = self._lately
        # Since the last line only: an earlier pause, or rows that already existed, say nothing about the pace.
        rate = (done - done_then) / (now - since)
        left = (
            str(timedelta(seconds=round((self._total - done) / rate))) + " left"
            if rate
            else "time left unknown"
        )
        # An image takes half a minute: less than one a second is normal.
        pace = f"{rate:.1f} a second" if rate >= 1 else f"{60 * rate:.1f} a minute"
        self._log.info(
            "%d of %d rows done, %d failed, %d in flight of %d, %s USD so far, %s, %s%s.",
            done,
            self._total,
            failed,
            in_flight,
            limit,
            billed,
            pace,
            left,
            waiting_for and f", {waiting_for}",
        )
        self._logged_at = now
        self._lately = (now, done)
