# SPDX-License-Identifier: Apache-2.0
"""The requests left in the API's rate limit window, which is a minute: ``X-RateLimit-*``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_getimg.api.types import RateLimit

#: Assumed length of the API's window in seconds, until a response shows it: limits are per minute.
WINDOW_SECONDS = 60.0
#: Possible error of the API's times, as a share of the window: they are whole seconds of a minute, and take time to arrive.
TOLERANCE = 2 / 60


class RequestWindow:
    """
    The requests left in the API's window, as far as it has reported them. Not thread-safe.

    The window may be fixed or sliding: each of its requests was sent less than its length before its end.

    All times are in seconds on one monotonic clock.
    """

    def __init__(self) -> None:
        # How many requests are left, and until when; None until the API reports it.
        self._left: int | None = None
        self._ends_at = 0.0
        # Requests per window, when this window began, how long one lasts (0 if unknown), and when this task sent requests.
        self._per_window: int | None = None
        self._began = 0.0
        self._length = 0.0
        self._sent_at: list[float] = []

    def wait(self, now: float) -> float:
        """Return the seconds until the next request may be sent; 0 or less means now."""
        if self._left is None or self._left > 0:
            return 0.0
        return self._ends_at - now

    def on_sent(self, now: float) -> None:
        """Count a request that was sent."""
        length = self._length or WINDOW_SECONDS
        if now >= self._ends_at:
            # As far as known, the API's next window begins with this request.
            self._began = now
            self._ends_at = now + length
            self._left = self._per_window
        oldest = now - length * (1 + TOLERANCE)
        self._sent_at = [moment for moment in self._sent_at if moment >= oldest]
        self._sent_at.append(now)
        if self._left is not None:
            self._left -= 1

    def on_not_counted(self) -> None:
        """Record that the API did not count a request: it was refused, or not received."""
        if self._left is not None:
            self._left += 1

    def on_response(self, now: float, rate_limit: RateLimit) -> bool:
        """
        Record what a response reports, and return whether others use the same key.

        They do if more of the window's requests are used up than this task has sent.
        """
        ends_at = now + rate_limit.resets_in
        left = rate_limit.remaining
        if ends_at > self._ends_at + (self._length / 2 or 2 * TOLERANCE * WINDOW_SECONDS):
            # Sent in one window and completed in the next.
            self._began = ends_at - (self._length or WINDOW_SECONDS)
        elif self._left is not None and ends_at <= self._ends_at + TOLERANCE * self._length:
            # The same window. Requests that were on their way when the API sent this response are missing in it.
            left = min(left, self._left)
        self._left, self._ends_at, self._per_window = left, ends_at, rate_limit.limit
        # The end of a sliding window moves on, so its distance from the beginning shows at most a minute.
        self._length = max(self._length, rate_limit.resets_in, min(ends_at - self._began, WINDOW_SECONDS))
        began = ends_at - self._length * (1 + TOLERANCE)
        own = sum(moment >= began for moment in self._sent_at)
        return rate_limit.limit is not None and rate_limit.limit - rate_limit.remaining > own
