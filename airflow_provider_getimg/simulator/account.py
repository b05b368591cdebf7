# SPDX-License-Identifier: Apache-2.0
"""The workspace's balance and request limits."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from airflow_provider_getimg.simulator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_getimg.simulator.settings import Settings

MINUTE = 60.0
DEFAULT_BALANCE = "100.00"
MAX_BALANCE = Decimal(10) ** 12


def parse_balance(value: object) -> Decimal:
    """Parse an amount in USD from a decimal string or a JSON number."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            balance = Decimal(str(value))
        except InvalidOperation:
            pass
        else:
            if balance.is_finite() and 0 <= balance <= MAX_BALANCE:
                return balance
    raise ValueError(f"the balance must be an amount in USD such as 12.34, got {value!r}")


class Hold:
    """Money reserved for an image or a video in progress, so that concurrent requests can't spend it twice."""

    def __init__(self, account: Account, amount: Decimal) -> None:
        self._account = account
        self.amount = amount
        self._open = True

    def charge(self) -> Decimal:
        """Bill the amount and return it."""
        self._account.balance -= self.amount
        self.release()
        return self.amount

    def release(self) -> None:
        """Release the money, unless it has already been billed."""
        if self._open:
            self._account.held -= self.amount
            self._open = False


class Account:
    """The balance of the workspace, in USD."""

    def __init__(self, balance: Decimal) -> None:
        self.balance = balance
        self.held = Decimal(0)

    def hold(self, amount: Decimal) -> Hold:
        """Reserve money, or refuse with a 402."""
        if self.balance - self.held < amount:
            raise ApiError(402, "Your balance is too low for this request. Top up your account to continue.")
        self.held += amount
        return Hold(self, amount)

    def public_balance(self) -> str:
        """Return the balance as a decimal string with two places, or more if it has fractions of a cent."""
        whole, _, fraction = f"{self.balance:f}".partition(".")
        return f"{whole}.{fraction.rstrip('0').ljust(2, '0')}"


class Limits:
    """Limits on requests per minute and on concurrent requests.

    The minute is a fixed window that starts with its first request; the settings' time scale shortens it.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self.running = 0
        self.new_window()

    def new_window(self) -> None:
        """Start a new window with no requests in it."""
        self._count = 0
        self._ends_at = 0.0

    def headers(self) -> dict[str, str]:
        """Return the headers of a generation response; none if requests per minute aren't limited."""
        limit = self._settings.rpm
        if not limit:
            return {}
        self._roll()
        ends_at = self._ends_at or self._next_end()
        return {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(max(0, limit - self._count)),
            "X-RateLimit-Reset": self._rounded_up(ends_at),
        }

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request while it runs, or refuse it with a 429. Refused requests are not counted."""
        settings = self._settings
        if settings.concurrency and self.running >= settings.concurrency:
            # No Retry-After: when the others will finish is unknown.
            raise ApiError(429, f"Too many concurrent requests: the limit is {settings.concurrency}.")
        self._roll()
        if settings.rpm and self._count >= settings.rpm:
            message = f"Too many requests: the limit is {settings.rpm} per minute."
            raise ApiError(
                429, message, headers={"Retry-After": self._rounded_up(self._ends_at - self._clock())}
            )
        if not self._count:
            self._ends_at = self._next_end()
        self._count += 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def _next_end(self) -> float:
        return self._clock() + self._settings.real(MINUTE)

    def _rounded_up(self, seconds: float) -> str:
        # Whole seconds, as in the API. With scaled time, those would make clients wait too long.
        digits = 0 if self._settings.time_scale == 1 else 3
        return f"{math.ceil(seconds * 10**digits) / 10**digits:.{digits}f}"

    def _roll(self) -> None:
        if self._ends_at and self._clock() >= self._ends_at:
            self.new_window()
