# SPDX-License-Identifier: Apache-2.0
"""
How many requests may be in flight at once.

The account's limit is not known beforehand, may change, and is shared with other tasks. It is found by sending: a refused request
(a 429 without ``Retry-After``) costs nothing but a round trip.

- A batch begins with a few slots and opens more, one by one, until one is refused. As many as were in flight then are the limit.
  Now and then it probes for one more: if that is not refused, slots are opened one by one again.
- A task that has all slots of the account would keep them: each is free for a round trip only. So one slot is left
  empty for a moment after every few responses. A task without a slot probes for it that often, and one with a few less often.
"""

from __future__ import annotations

import math
import random

from airflow_provider_getimg.retry import slot_probe_delay

#: Slots to begin with, and seconds until as many again are open, while nothing is refused.
FIRST_SLOTS, RAMP_SECONDS = 4, 1.0
#: Seconds between two slots that are opened, at least.
RAMP_SPACING = 0.04
#: Seconds after which a probe for one more slot has gone well, at most.
PROBE_SECONDS = 1.0
#: How many requests' time passes until the next probe: the first time, doubled each time, up to the time of a number of responses.
PROBE_REQUESTS, PROBE_RESPONSES = 2.0, 40
#: Responses after which a slot is given up to others for a moment: at first, and where others are known of; and at most.
GAP_FIRST, GAP_LAST = 4, 12
#: That moment, as a share of the time that a request takes: while no others are known of, and once they are.
GAP_ALONE, GAP_SHARED = 1 / 15, 1 / 6
#: Its bounds in seconds.
GAP_MIN, GAP_MAX = 0.05, 6.0
#: How many requests' time others are believed to be there.
SHARED_REQUESTS = 4.0


class ConcurrencyLimit:
    """
    The number of slots, as far as it is known. Not safe to use from several threads.

    All moments are those of one monotonic clock, in seconds.

    :param most: How many there are at most.
    :param now: The moment.
    """

    def __init__(self, most: int, now: float) -> None:
        self._most = most
        self.value = min(most, FIRST_SLOTS)
        # Whether slots are opened one by one, and when the next is due.
        self._is_ramping = True
        self._next_slot_at = now + RAMP_SECONDS / self.value
        # When a request was refused the last time.
        self._refused_at: float | None = None
        # Seconds that a request takes.
        self._latency: float | None = None
        # When to probe for one more slot, and how long after the last probe that is.
        self._next_probe_at = math.inf
        self._probe_after = 0.0
        # Others use the same key: believed until then.
        self._shared_until = 0.0
        # Since when others have had all slots; None for not now.
        self._crowded_out_at: float | None = None
        # One slot stays empty until then; responses until the next time, and the time after.
        self._gap_until = 0.0
        self._until_gap = self._gap_after = GAP_FIRST

    @property
    def is_reached(self) -> bool:
        """Whether a request was refused so far."""
        return self._refused_at is not None

    @property
    def is_crowded_out(self) -> bool:
        """Whether other tasks have all slots, as far as is known."""
        return self._crowded_out_at is not None

    def allows(self, in_flight: int, now: float) -> bool:
        """Return whether one more request may be sent. One beyond the limit is a probe for one more slot."""
        slots = self.value - 1 if now < self._gap_until else self.value
        if in_flight < slots:
            return True
        if self.value >= self._most or self.is_crowded_out:
            return False
        if now < self._gap_until or now < self._next_slot_at:
            return False
        if self._is_ramping:
            self.value += 1
            self._next_slot_at = now + max(RAMP_SPACING, RAMP_SECONDS / self.value)
            return True
        if now < self._next_probe_at:
            return False
        # If it is not refused, the limit was raised: the next slots follow.
        self.value += 1
        self._is_ramping = True
        self._next_slot_at = now + min(PROBE_SECONDS, self._gap(now))
        return True

    def changes_at(self, now: float) -> float | None:
        """Return when a slot may open by itself; None for not before the next response."""
        moments = [self._gap_until]
        if self.value < self._most:
            moments += self._next_slot_at, self._next_probe_at
        return min((moment for moment in moments if now < moment < math.inf), default=None)

    def on_response(self, seconds: float, now: float) -> None:
        """
        Note that a request was completed.

        :param seconds: How long it took.
        """
        is_first = self._latency is None
        self._latency = seconds if self._latency is None else 0.7 * self._latency + 0.3 * seconds
        self._crowded_out_at = None
        if not self.is_reached:
            return
        if is_first:
            self._delay_probe(now)
        self._until_gap -= 1
        if self._until_gap <= 0:
            self._gap_until = now + self._gap(now)
            self._gap_after = GAP_FIRST if self._is_shared(now) else min(self._gap_after + 1, GAP_LAST)
            self._until_gap = self._gap_after

    def on_shared(self, now: float) -> None:
        """Note that others use the same key."""
        was_shared = self._is_shared(now)
        self._shared_until = now + SHARED_REQUESTS * (self._latency or GAP_MAX)
        if not was_shared:
            self._until_gap = min(self._until_gap, GAP_FIRST)
            self._next_probe_at = min(self._next_probe_at, now + self._shared_probe_after(now))

    def on_refused(self, others: int, now: float) -> float:
        """
        Note a refused request, and return the seconds until the next may be sent.

        :param others: How many requests of this task were in flight beside it.
        """
        if (
            self._refused_at is not None
            and not self._is_ramping
            and now > self._refused_at + min(PROBE_SECONDS, self._gap(now))
        ):
            # It was within the limit.
            self.on_shared(now)
        if others < self.value:
            # What the others have is the limit.
            self.value = max(1, others)
        # Of many that are refused together, one counts.
        if self._is_ramping or now >= self._next_probe_at:
            self._delay_probe(now)
        self._is_ramping = False
        self._refused_at = now
        if others:
            return 0.0
        self.on_shared(now)
        if self._crowded_out_at is None:
            self._crowded_out_at = now
        return slot_probe_delay(now - self._crowded_out_at)

    def _delay_probe(self, now: float) -> None:
        if self._is_shared(now):
            self._probe_after = self._shared_probe_after(now)
        elif self._latency is None:
            # Known with the first response.
            self._probe_after = math.inf
        else:
            longest = PROBE_RESPONSES * self._latency / self.value
            first = min(PROBE_REQUESTS * self._latency, longest)
            self._probe_after = (
                first if self._probe_after == math.inf else min(2 * self._probe_after, longest)
            )
        self._next_probe_at = now + self._probe_after

    def _is_shared(self, now: float) -> bool:
        return now < self._shared_until

    def _gap(self, now: float) -> float:
        if self._latency is None:
            return GAP_MAX
        share = GAP_SHARED if self._is_shared(now) else GAP_ALONE
        return min(max(share * self._latency, GAP_MIN), GAP_MAX)

    def _shared_probe_after(self, now: float) -> float:
        # The more slots a task has, the less often it probes for another: so tasks end up with about as many each.
        return float(self._gap(now) * (1 + self.value) ** 2 / 2 * random.uniform(0.75, 1.25))
