# SPDX-License-Identifier: Apache-2.0
"""
How many requests are in flight at once, and when the next may be sent.

The account's limits are not known beforehand, differ by account, and are shared with other tasks. They are found by
sending: a 429 costs nothing but a round trip, and few are spent.

- A batch begins with a few slots and opens more, one by one, until a 429 without ``Retry-After`` says that it is too many at once. As
  many as were in flight then are the limit. After some responses one more is tried; if it is not refused, slots are opened
  one by one again.
- A 429 with ``Retry-After``, or a response that says that no requests are left: nothing is sent until then. How many a window
  takes (``X-RateLimit-Limit``) is kept for the next one.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import KilledError, NoConnectionError, RateLimitError
from airflow_provider_getimg.retry import MIN_WAIT, backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.sdk.types import Logger

    from airflow_provider_getimg.api.client import GetimgClient
    from airflow_provider_getimg.api.types import Generation, ImageRequest, RateLimit

#: Slots to begin with, and seconds until as many again are open, while nothing is refused.
FIRST_SLOTS, RAMP_SECONDS = 4, 0.5
#: Seconds between two requests at least, once a limit was met: so few are refused before the first refusal is here.
SPACING = 0.04
#: Responses from a refused probe to the next probe: doubled each time, up to the last.
PROBE_FIRST, PROBE_MAX = 10, 40
#: The same where other tasks have all of the limit: what they leave is found sooner.
PROBE_SHARED = 2
#: Seconds after which a probe that was not refused has gone well.
PROBE_SECONDS = 1.0
#: Seconds of the API's window for requests, while it is not known better: limits are per minute.
WINDOW_SECONDS = 60.0
#: Bounds in seconds of the wait after a connection that was not made.
BACKOFF_FIRST, BACKOFF_LIMIT = 1.0, 30.0
#: The longest wait after a 429 with nothing else in flight: a slot is free for a moment only.
SHARED_LIMIT = 5.0
# A waiting thread looks this often whether the batch was told to stop: a signal handler must not take a lock.
_LOOK_SECONDS = 0.25


class RateLimiter:
    """
    The slots for requests. Safe to use from several threads.

    :param concurrency: How many requests are in flight at once, at most.
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
        self._limit = min(concurrency, FIRST_SLOTS)
        self._in_flight = 0
        self._opens_at = 0.0
        self._closed_because = ""
        # Whether slots are opened one by one, and when the next is due.
        self._is_ramping = True
        self._next_slot_at = clock() + RAMP_SECONDS / self._limit
        # Once a limit was met: when the next request may follow the last one.
        self._is_spaced = False
        self._next_send_at = 0.0
        # Responses since the last refused probe, and how many there must be for the next.
        self._responses = 0
        self._probe_after = PROBE_FIRST
        # Requests that are left in the API's window, until when; None while it said nothing.
        self._left: int | None = None
        self._left_until = 0.0
        # How many a window takes, when this one began, and how long one lasts, as far as it was seen.
        self._per_window: int | None = None
        self._window_began = 0.0
        self._window = 0.0
        self._refusals = 0
        self._held = False

    @property
    def in_flight(self) -> int:
        """How many requests are in flight."""
        return self._in_flight

    @property
    def limit(self) -> int:
        """How many requests may be in flight at once, for now."""
        return self._limit

    @property
    def waiting_for(self) -> str:
        """What the next request waits for, as the end of a sentence; empty for nothing but a slot."""
        with self._changed:
            wait = self._wait()
            if self._held:
                return "waiting for billed images to be saved"
            if wait < 1:
                return ""
            why = self._closed_because if self._opens_at > self._clock() else "getimg.ai limits requests"
            return f"waiting for {timedelta(seconds=math.ceil(wait))} more ({why})"

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
                self._changed.wait(self._look_again_in(wait))
            self._note_sent()
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify()

    def on_response(self, rate_limit: RateLimit | None) -> None:
        """Note a response, and what it says of the limit."""
        with self._changed:
            self._refusals = 0
            self._responses += 1
            if rate_limit is None:
                return
            self._left = rate_limit.remaining
            self._left_until = self._clock() + rate_limit.resets_in
            self._per_window = rate_limit.limit
            self._window = max(self._window, self._left_until - self._window_began)

    def on_rate_limited(self, error: RateLimitError) -> None:
        """Note a 429, from within its slot."""
        with self._changed:
            now = self._clock()
            self._is_spaced = True
            if error.retry_after is not None:
                self._close_until(now + max(error.retry_after, MIN_WAIT), "getimg.ai limits requests")
                return
            others = self._in_flight - 1
            if others < self._limit:
                # What the others have is what is allowed. Of many that are refused together, one counts as the failed probe.
                if self._is_ramping and self._responses:
                    self._probe_after = min(2 * self._probe_after, PROBE_MAX)
                self._is_ramping = False
                self._responses = 0
                self._limit = max(1, others)
            if not others:
                self._refusals += 1
                self._probe_after = PROBE_SHARED
                wait = backoff(self._refusals, BACKOFF_FIRST, SHARED_LIMIT)
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
        if self._is_spaced:
            wait = max(wait, self._next_send_at - now)
        return max(wait, self._left_until - now) if self._left is not None and self._left <= 0 else wait

    def _look_again_in(self, wait: float) -> float:
        """Return how many seconds a waiting thread sleeps at most, where nothing changes."""
        if wait <= 0 and not self._held and self._limit < self._concurrency:
            wait = self._next_slot_at - self._clock()
        return min(wait, _LOOK_SECONDS) if wait > 0 else _LOOK_SECONDS

    def _note_sent(self) -> None:
        now = self._clock()
        self._in_flight += 1
        self._next_send_at = now + SPACING
        if now >= self._left_until:
            # As far as is known, the API's next window begins with this request.
            self._window_began = now
            self._left_until = now + (self._window or WINDOW_SECONDS)
            self._left = self._per_window
        if self._left is not None:
            self._left -= 1

    def _limit_now(self) -> int:
        """Return the limit, after one more slot if it is due."""
        now = self._clock()
        if self._limit >= self._concurrency or self._in_flight < self._limit or now < self._next_slot_at:
            return self._limit
        if self._is_ramping:
            self._limit += 1
            self._probe_after = PROBE_FIRST
            self._next_slot_at = now + max(SPACING, RAMP_SECONDS / self._limit)
        elif self._responses >= self._probe_after:
            # If it is not refused, the limit was raised: the next slots follow.
            self._limit += 1
            self._is_ramping = True
            self._next_slot_at = now + PROBE_SECONDS
        return self._limit

    def _close_until(self, moment: float, why: str) -> None:
        # Many are refused at the same time: told once.
        if moment > self._opens_at + MIN_WAIT:
            self._log.info(
                "%s: asking again in %.0f seconds. Nothing was billed.", why, moment - self._clock()
            )
        if moment > self._opens_at:
            self._opens_at, self._closed_because = moment, why


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
