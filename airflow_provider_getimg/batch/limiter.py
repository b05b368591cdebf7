# SPDX-License-Identifier: Apache-2.0
"""
How many requests are on their way at once, and when the next may go.

The account's limits are not known beforehand, differ by account, and are shared with other tasks. They are found by
asking: a 429 costs nothing.

- 429 with ``Retry-After``, or an answer that says that no requests are left: nothing is sent until then.
- 429 without: too many at once. As many as were let through are the limit; now and then one more is
  tried, sooner and with larger steps while that goes well.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import KilledError, NoConnectionError, RateLimitError
from airflow_provider_getimg.retry import MIN_WAIT, backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.sdk.types import Logger

    from airflow_provider_getimg.api.client import GetimgClient
    from airflow_provider_getimg.api.types import Generation, ImageRequest, RateLimit

#: Seconds from one attempt to send more at once to the next: halved while it goes well, doubled when it does not.
PROBE_FIRST, PROBE_MIN, PROBE_MAX = 2.0, 1.0, 60.0
#: Bounds in seconds of the wait after a 429 with nothing else on its way, and after a connection that was not made.
BACKOFF_FIRST, BACKOFF_LIMIT = 1.0, 30.0
# A waiting thread looks this often whether the batch was told to stop: a signal handler must not take a lock.
_LOOK_SECONDS = 0.25


class RateLimiter:
    """
    The slots for requests. Safe to use from several threads.

    :param concurrency: How many requests are on their way at once, at most.
    :param is_stopping: Whether nothing more is to be sent.
    :param log: Where changes of the limit are logged.
    :param max_wait: Seconds to wait where the API says that no requests are left. Default: as long as it takes.
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
        self._concurrency = concurrency
        self._is_stopping = is_stopping
        self._log = log
        self._max_wait = max_wait
        self._clock = clock
        self._changed = threading.Condition()
        self._limit = concurrency
        self._in_flight = 0
        self._opens_at = 0.0
        #: Requests that the API said are left, until when; None while it said nothing.
        self._left: int | None = None
        self._left_until = 0.0
        self._probe_seconds = PROBE_FIRST
        self._probe_at = 0.0
        # Whether the last step up has not been refused so far.
        self._stepped = False
        self._refusals = 0
        self._held = False

    @property
    def in_flight(self) -> int:
        """How many requests are on their way."""
        return self._in_flight

    @property
    def limit(self) -> int:
        """How many requests may be on their way at once, for now."""
        return self._limit

    @property
    def wait(self) -> float:
        """Seconds until another request may be sent, as far as the API has said; 0 for now."""
        with self._changed:
            return max(0.0, self._wait())

    def pause(self, held: bool) -> None:
        """Let no request begin while ``held``: paid images are saved first."""
        with self._changed:
            self._held = held
            self._changed.notify_all()

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """
        Wait until a request may be sent, and count it for as long as the block runs.

        :raises KilledError: Nothing more is to be sent.
        :raises RateLimitError: The required wait exceeds max_wait.
        """
        with self._changed:
            while True:
                if self._is_stopping():
                    raise KilledError("The batch was stopped before the request was sent.")
                wait = self._wait()
                if wait > self._max_wait:
                    raise RateLimitError(
                        f"getimg.ai takes no more requests for {wait:.0f} seconds.", retry_after=wait
                    )
                if wait <= 0 and not self._held and self._in_flight < self._limit_now():
                    break
                self._changed.wait(min(wait, _LOOK_SECONDS) if wait > 0 else _LOOK_SECONDS)
            self._in_flight += 1
            if self._left is not None:
                self._left -= 1
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify()

    def on_response(self, rate_limit: RateLimit | None) -> None:
        """Note an answer, and what it says of the limit."""
        with self._changed:
            self._refusals = 0
            if rate_limit is not None:
                self._left = rate_limit.remaining
                self._left_until = self._clock() + rate_limit.resets_in

    def on_rate_limited(self, error: RateLimitError) -> None:
        """Note a 429, from within its slot."""
        with self._changed:
            now = self._clock()
            if error.retry_after is not None:
                self._close_until(now + max(error.retry_after, MIN_WAIT), "getimg.ai limits requests")
                return
            others = self._in_flight - 1
            if others < self._limit:
                # What the others have is what is allowed. Of many that are refused together, one counts as the failed step.
                if self._stepped:
                    self._probe_seconds = min(self._probe_seconds * 2, PROBE_MAX)
                    self._stepped = False
                self._probe_at = now + self._probe_seconds
                self._limit = max(1, others)
            if not others:
                self._refusals += 1
                wait = backoff(self._refusals, BACKOFF_FIRST, BACKOFF_LIMIT)
                self._close_until(now + wait, "getimg.ai takes no request beside those of others")

    def unreachable(self) -> None:
        """Note that no connection was made, from within its slot."""
        with self._changed:
            now = self._clock()
            if now < self._opens_at:
                # One of many that failed together.
                return
            self._refusals += 1
            self._close_until(
                now + backoff(self._refusals, BACKOFF_FIRST, BACKOFF_LIMIT), "getimg.ai is out of reach"
            )

    def _wait(self) -> float:
        now = self._clock()
        if self._left is not None and now >= self._left_until:
            self._left = None
        wait = self._opens_at - now
        return max(wait, self._left_until - now) if self._left is not None and self._left <= 0 else wait

    def _limit_now(self) -> int:
        """Return the limit, after a step up if one is due."""
        now = self._clock()
        if self._limit < self._concurrency and self._in_flight >= self._limit and now >= self._probe_at:
            self._limit = min(self._concurrency, self._limit + max(1, self._limit // 4))
            if self._stepped:
                self._probe_seconds = max(self._probe_seconds / 2, PROBE_MIN)
            self._stepped = True
            self._probe_at = now + self._probe_seconds
        return self._limit

    def _close_until(self, moment: float, why: str) -> None:
        # Many are refused at the same time: told once.
        if moment > self._opens_at + MIN_WAIT:
            self._log.info(
                "%s: asking again in %.0f seconds. Nothing was billed.", why, moment - self._clock()
            )
        self._opens_at = max(self._opens_at, moment)


class PacedClient:
    """
    A client whose answers set the pace.

    :param client: Sends the requests.
    :param pace: Learns from the answers.
    """

    def __init__(self, client: GetimgClient, pace: RateLimiter) -> None:
        self._client = client
        self._pace = pace

    def generate_image(self, request: ImageRequest) -> Generation:
        """Generate an image, as the client does; within a slot."""
        try:
            generation = self._client.generate_image(request)
        except RateLimitError as error:
            self._pace.on_rate_limited(error)
            raise
        except NoConnectionError:
            self._pace.unreachable()
            raise
        self._pace.on_response(generation.rate_limit)
        return generation
