# SPDX-License-Identifier: Apache-2.0
"""
The number of requests that may be in flight at once.

The account's limit is not known in advance, may change, and is shared with other tasks. It is found by trial and error: a refused
request (a 429 without ``Retry-After``) costs only a round trip.

- A batch starts with a few slots and opens more, one by one, until a request is refused. The number in flight then is the limit.
  Now and then it probes for one more: if the probe is not refused, it opens slots one by one again.
- A task that holds all slots of the account would keep them, as each is free only for a round trip. So it leaves one slot
  empty for a moment after every few responses. A task without a slot probes frequently for it, one with a few less often.
"""

from __future__ import annotations

import math
import random

from airflow_provider_getimg.retry import slot_probe_delay

#: Initial slots, and seconds in which their number doubles while nothing is refused.
FIRST_SLOTS, RAMP_SECONDS = 4, 1.0
#: Minimum seconds between opening two slots.
RAMP_SPACING = 0.04
#: Seconds until a probe that was not refused counts as a success, at most; but at least this many times what a refusal takes.
PROBE_SECONDS, ROUND_TRIPS = 1.0, 2.0
#: Wait until the next probe: at first, this many request durations; then doubled each time, up to the time of this many responses.
PROBE_REQUESTS, PROBE_RESPONSES = 2.0, 40
#: Responses after which a slot is left empty for a moment: at first, and while others are known; and at most.
GAP_FIRST, GAP_LAST = 4, 12
#: That moment, as a share of a request's duration: while no others are known, and once they are.
GAP_ALONE, GAP_SHARED = 1 / 15, 1 / 6
#: Its bounds in seconds.
GAP_MIN, GAP_MAX = 0.05, 6.0
#: How long others are assumed to be active once noticed, in request durations.
SHARED_REQUESTS = 4.0


class ConcurrencyLimit:
    """
    The number of slots, as far as known. Not thread-safe.

    All times are in seconds on one monotonic clock.

    :param max_slots: The maximum number of slots.
    :param now: The current time.
    """

    def __init__(self, max_slots: int, now: float) -> None:
        self._max_slots = max_slots
        self.value = min(max_slots, FIRST_SLOTS)
        # Whether slots are being opened one by one, and when the next is due.
        self._is_ramping = True
        self._next_slot_at = now + RAMP_SECONDS / self.value
        # When a request was last refused.
        self._refused_at: float | None = None
        # Seconds that a request takes, and a refusal, smoothed.
        self._latency: float | None = None
        self._round_trip: float | None = None
        # When to probe for one more slot, and the wait since the last probe.
        self._next_probe_at = math.inf
        self._probe_after = math.inf
        # Until when others are assumed to use the same key.
        self._shared_until = 0.0
        # Since when others have held all slots; None if they don't.
        self._crowded_out_at: float | None = None
        # Until when one slot stays empty; responses until the next such gap, and until the one after it.
        self._gap_until = 0.0
        self._until_gap = self._gap_after = GAP_FIRST

    @property
    def is_reached(self) -> bool:
        """Whether any request has been refused."""
        return self._refused_at is not None

    @property
    def is_crowded_out(self) -> bool:
        """Whether other tasks hold all slots, as far as known."""
        return self._crowded_out_at is not None

    def try_admit(self, in_flight: int, now: float) -> bool:
        """Return whether one more request may be sent, opening a slot for it if one is due: the first beyond the limit is a probe."""
        slots = self.value - 1 if now < self._gap_until else self.value
        if in_flight < slots:
            return True
        if self.value >= self._max_slots or self.is_crowded_out:
            return False
        if now < self._gap_until or now < self._next_slot_at:
            return False
        if self._is_ramping:
            self.value += 1
            self._next_slot_at = now + max(RAMP_SPACING, RAMP_SECONDS / self.value)
            return True
        if now < self._next_probe_at:
            return False
        # If it is not refused, the limit was raised, and more slots follow.
        self.value += 1
        self._is_ramping = True
        self._next_slot_at = now + self._verdict_after(now)
        return True

    def next_change_at(self, now: float) -> float | None:
        """Return when a slot may open by itself; None if not before the next response."""
        moments = [self._gap_until]
        if self.value < self._max_slots:
            moments += self._next_slot_at, self._next_probe_at
        return min((moment for moment in moments if now < moment < math.inf), default=None)

    def on_response(self, seconds: float, now: float) -> None:
        """
        Record a completed request.

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
        """Record that others use the same key."""
        was_shared = self._is_shared(now)
        self._shared_until = now + SHARED_REQUESTS * (self._latency or GAP_MAX)
        if not was_shared:
            self._until_gap = min(self._until_gap, GAP_FIRST)
            self._next_probe_at = min(self._next_probe_at, now + self._shared_probe_after(now))

    def on_refused(self, others: int, seconds: float, now: float) -> float:
        """
        Record a refused request and return the seconds until the next may be sent.

        :param others: How many other requests of this task were in flight.
        :param seconds: How long the refusal took.
        """
        self._round_trip = seconds if self._round_trip is None else 0.7 * self._round_trip + 0.3 * seconds
        if (
            self._refused_at is not None
            and not self._is_ramping
            and now > self._refused_at + self._verdict_after(now)
        ):
            # It was within the limit, so others hold slots.
            self.on_shared(now)
        if others < self.value:
            # The limit is the number of those other requests.
            self.value = max(1, others)
        # Of several refused together, only one counts.
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
            # Set on the first response.
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

    def _verdict_after(self, now: float) -> float:
        """Return the seconds after which a probe that was not refused counts as a success."""
        return max(min(PROBE_SECONDS, self._gap(now)), ROUND_TRIPS * (self._round_trip or 0.0))

    def _shared_probe_after(self, now: float) -> float:
        # The more slots a task has, the less often it probes, so that tasks end up with about as many each.
        return float(self._gap(now) * (1 + self.value) ** 2 / 2 * random.uniform(0.75, 1.25))
