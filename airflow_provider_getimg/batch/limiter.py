# SPDX-License-Identifier: Apache-2.0
"""
Decides when the next request may be sent, within the account's limits on concurrent requests and on requests per minute.

Neither limit is known in advance, and both are shared with other tasks. A 429 costs only a round trip, and the limiter causes few.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import KilledError, NoConnectionError, RateLimitError
from airflow_provider_getimg.batch.concurrency_limit import ConcurrencyLimit
from airflow_provider_getimg.batch.in_flight import InFlight
from airflow_provider_getimg.batch.request_window import RequestWindow
from airflow_provider_getimg.retry import MIN_WAIT, backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.sdk.types import Logger

    from airflow_provider_getimg.api.types import Generation, RateLimit
    from airflow_provider_getimg.batch.in_flight import Slot

#: Minimum seconds between two requests once a limit was hit, so that few are refused before the first refusal arrives.
SPACING = 0.04
#: Bounds in seconds of the wait after a failed connection.
BACKOFF_FIRST, BACKOFF_LIMIT = 1.0, 30.0
# How often, in seconds, a waiting thread checks whether to stop: a signal handler must not take a lock to wake it.
_LOOK_SECONDS = 0.25


class RateLimiter:
    """
    The slots for requests. Thread-safe.

    :param concurrency: The most requests in flight at once.
    :param is_stopping: Returns whether to stop sending.
    :param log: Where long waits and their reasons are logged.
    :param max_wait: The longest wait for a request, in seconds. Default: no limit.
    :param clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        concurrency: int,
        is_stopping: Callable[[], bool],
        log: Logger,
        max_wait: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_stopping = is_stopping
        self._log = log
        self._max_wait = max_wait
        self._clock = clock
        self._changed = threading.Condition()
        self._limit = ConcurrencyLimit(concurrency, clock())
        self._window = RequestWindow()
        self._in_flight = InFlight()
        # Nothing is sent before this time, and why.
        self._opens_at = 0.0
        self._close_reason = ""
        # Whether requests are spaced (once a limit was hit), and when the next may follow the last one.
        self._is_spaced = False
        self._next_send_at = 0.0
        # Consecutive failed connections.
        self._unreachable = 0
        self._paused = False

    @property
    def in_flight(self) -> int:
        """How many requests are in flight."""
        return len(self._in_flight)

    @property
    def limit(self) -> int:
        """How many requests may currently be in flight at once."""
        return self._limit.value

    @property
    def waiting_for(self) -> str:
        """What the next request is waiting for, as the end of a sentence; empty if only for a slot."""
        with self._changed:
            wait = self._wait()
            if self._paused:
                return "waiting for billed images to be saved"
            if self._limit.is_crowded_out:
                return "waiting for a slot (other tasks use all of the account's concurrent requests)"
            if wait < 1:
                return ""
            why = self._close_reason if self._opens_at > self._clock() else "getimg.ai limits requests"
            return f"waiting for {timedelta(seconds=math.ceil(wait))} more ({why})"

    def set_paused(self, paused: bool) -> None:
        """Hold back new requests while ``paused``: paid images are saved first."""
        with self._changed:
            self._paused = paused
            self._changed.notify_all()

    @contextmanager
    def acquire(self) -> Iterator[Slot]:
        """
        Wait until a request may be sent, and yield a slot for it, which is in use while the block runs.

        :raises KilledError: Sending has stopped.
        :raises RateLimitError: The required wait exceeds max_wait.
        """
        with self._changed:
            while True:
                if self._is_stopping():
                    raise KilledError("The batch was stopped before the request was sent.")
                wait = self._wait()
                if wait > self._max_wait:
                    raise RateLimitError(
                        f"getimg.ai accepts no requests for the next {wait:.0f} seconds.", retry_after=wait
                    )
                if wait <= 0 and not self._paused and self._limit.try_admit(self.in_flight, self._clock()):
                    break
                self._changed.wait(self._look_again_in(wait))
            slot = self._take_slot()
        try:
            yield slot
        finally:
            with self._changed:
                self._in_flight.free(slot, self._clock())
                self._changed.notify()

    def send(self, slot: Slot, post: Callable[[], Generation]) -> Generation:
        """
        Send a request and learn from its outcome.

        :param slot: The request's slot.
        :param post: Sends the request once.
        """
        with self._changed:
            slot.sent_at = self._clock()
        try:
            generation = post()
        except RateLimitError as error:
            self.on_rate_limited(slot, error)
            raise
        except NoConnectionError:
            self.on_unreachable()
            raise
        self.on_response(slot, generation.rate_limit)
        return generation

    def on_response(self, slot: Slot, rate_limit: RateLimit | None) -> None:
        """Record a response and what it says about the limits."""
        with self._changed:
            now = self._clock()
            # The slot is held until the response is recorded, too.
            slot.ended_at = now
            self._unreachable = 0
            self._limit.on_response(now - slot.sent_at, now)
            if rate_limit is not None and self._window.on_response(now, rate_limit):
                self._limit.on_shared(now)

    def on_rate_limited(self, slot: Slot, error: RateLimitError) -> None:
        """Record a 429. Call this while the request still holds its slot."""
        with self._changed:
            now = self._clock()
            slot.is_refused = True
            self._window.on_not_counted()
            self._is_spaced = True
            if error.retry_after is not None:
                self._close_until(now + max(error.retry_after, MIN_WAIT), "getimg.ai limits requests")
                return
            was_crowded_out = self._limit.is_crowded_out
            wait = self._limit.on_refused(self._in_flight.most_beside(slot), now - slot.sent_at, now)
            self._opens_at = max(self._opens_at, now + wait)
            if self._limit.is_crowded_out and not was_crowded_out:
                self._log.info(
                    "Other tasks use all of the account's concurrent requests. Retrying until one is free. Nothing was billed."
                )

    def on_unreachable(self) -> None:
        """Record a failed connection. Call this while the request still holds its slot."""
        with self._changed:
            now = self._clock()
            self._window.on_not_counted()
            if now < self._opens_at:
                # One of several that failed together.
                return
            self._unreachable += 1
            self._close_until(
                now + backoff(self._unreachable, BACKOFF_FIRST, BACKOFF_LIMIT), "getimg.ai is unreachable"
            )

    def _wait(self) -> float:
        now = self._clock()
        wait = max(self._opens_at - now, self._window.wait(now))
        return max(wait, self._next_send_at - now) if self._is_spaced else wait

    def _look_again_in(self, wait: float) -> float:
        """Return the most seconds that a waiting thread sleeps if it is not notified."""
        if wait <= 0 and not self._paused:
            now = self._clock()
            next_change_at = self._limit.next_change_at(now)
            wait = next_change_at - now if next_change_at is not None else _LOOK_SECONDS
        return min(wait, _LOOK_SECONDS) if wait > 0 else _LOOK_SECONDS

    def _take_slot(self) -> Slot:
        now = self._clock()
        self._next_send_at = now + SPACING
        self._window.on_sent(now)
        return self._in_flight.take()

    def _close_until(self, moment: float, why: str) -> None:
        # Many requests are refused at the same time: log it only once.
        if moment > self._opens_at + MIN_WAIT:
            self._log.info("%s: retrying in %.0f seconds. Nothing was billed.", why, moment - self._clock())
        if moment > self._opens_at:
            self._opens_at, self._close_reason = moment, why
