# SPDX-License-Identifier: Apache-2.0
"""The requests in flight, and how many there were at once."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(eq=False)
class Slot:
    """
    The place of one request in flight.

    :param sent_at: When it was sent; infinity before.
    :param ended_at: When its outcome was known; infinity before.
    :param is_refused: Whether it was refused, so that it never occupied any of the account's concurrent requests.
    """

    sent_at: float = math.inf
    ended_at: float = math.inf
    is_refused: bool = False


class InFlight:
    """
    The slots in use, and those freed recently. Not thread-safe.

    All times are in seconds on one monotonic clock.
    """

    def __init__(self) -> None:
        self._used: list[Slot] = []
        # Freed while a slot in use had been sent.
        self._freed: list[Slot] = []

    def __len__(self) -> int:
        return len(self._used)

    def take(self) -> Slot:
        """Return a new slot, in use from now on."""
        slot = Slot()
        self._used.append(slot)
        return slot

    def free(self, slot: Slot, now: float) -> None:
        """Free a slot."""
        slot.ended_at = min(slot.ended_at, now)
        self._used.remove(slot)
        self._freed.append(slot)
        oldest = min((other.sent_at for other in self._used), default=math.inf)
        self._freed = [other for other in self._freed if other.ended_at > oldest]

    def most_beside(self, slot: Slot) -> int:
        """
        Return the most other requests that were in flight at one time since this slot's request was sent.

        When exactly the API refused it is unknown. The API held no more of this task's requests then than these.
        """
        others = [
            other for other in (*self._used, *self._freed) if other is not slot and not other.is_refused
        ]
        # The number grows only when a request is sent.
        moments = {slot.sent_at, *(other.sent_at for other in others if other.sent_at > slot.sent_at)}
        return max(sum(other.sent_at <= moment < other.ended_at for other in others) for moment in moments)
