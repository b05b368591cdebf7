# SPDX-License-Identifier: Apache-2.0
"""The requests left in the API's window, in simulated time."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from itertools import count

import pytest

from airflow_provider_getimg.api.types import RateLimit
from airflow_provider_getimg.batch.request_window import RequestWindow

PER_WINDOW = 20


@dataclass
class Api:
    """An API that reports its limit in whole seconds, with windows that are fixed, from their first request, or sliding."""

    length: float
    is_sliding: bool
    accepted: list[float] = field(default_factory=list)

    def take(self, now: float) -> bool:
        self.roll(now)
        if len(self.accepted) == PER_WINDOW:
            return False
        self.accepted.append(now)
        return True

    def roll(self, now: float) -> None:
        if self.is_sliding:
            self.accepted = [moment for moment in self.accepted if moment > now - self.length]
        elif self.accepted and now >= self.accepted[0] + self.length:
            self.accepted.clear()

    def limit(self, now: float) -> RateLimit:
        self.roll(now)
        left = self.accepted[0] + self.length - now if self.accepted else self.length
        return RateLimit(PER_WINDOW - len(self.accepted), math.ceil(left), PER_WINDOW)


def run(
    api: Api, slots: int, seconds: tuple[float, float], round_trip: float, others_every: float
) -> list[bool]:
    """Use some slots for ten windows, and return for each response whether it showed that others send requests, too."""
    chance, number = random.Random(7), count()
    window = RequestWindow()
    shown: list[bool] = []
    # When what happens: a request arrives or is completed, a response arrives, others send.
    events: list[tuple[float, int, str, RateLimit | None]] = []
    now, in_flight = 100.0, 0
    if others_every:
        heapq.heappush(events, (now, next(number), "other", None))
    while now < 100 + 10 * api.length:
        now += 0.05
        while events and events[0][0] <= now:
            at, _, what, limit = heapq.heappop(events)
            if what == "other":
                api.take(at)
                heapq.heappush(events, (at + others_every, next(number), "other", None))
            elif what == "arrives":
                if api.take(at):
                    heapq.heappush(events, (at + chance.uniform(*seconds), next(number), "completed", None))
                else:
                    in_flight -= 1
            elif what == "completed":
                heapq.heappush(events, (at + round_trip / 2, next(number), "response", api.limit(at)))
            elif limit is not None:
                in_flight -= 1
                shown.append(window.on_response(at, limit))
        if in_flight < slots and window.wait(now) <= 0:
            in_flight += 1
            window.on_sent(now)
            heapq.heappush(events, (now + round_trip / 2, next(number), "arrives", None))
    return shown


@pytest.mark.parametrize("is_sliding", [False, True], ids=["fixed", "sliding"])
@pytest.mark.parametrize("length", [60, 3600], ids=["minute", "hour"])
@pytest.mark.parametrize("seconds", [(25.0, 35.0), (2.0, 3.0)], ids=["slow", "fast"])
@pytest.mark.parametrize("round_trip", [0.02, 1.0], ids=["near", "far"])
@pytest.mark.parametrize("slots", [1, 2, 5, 16])
def test_own_requests_are_not_taken_for_those_of_others(slots, round_trip, seconds, length, is_sliding):
    shown = run(Api(length, is_sliding), slots, seconds, round_trip, others_every=0)
    assert len(shown) >= 15
    assert not any(shown)


@pytest.mark.parametrize("is_sliding", [False, True], ids=["fixed", "sliding"])
@pytest.mark.parametrize("others_every", [8.0, 12.0])
def test_requests_of_others_are_noticed(others_every, is_sliding):
    shown = run(Api(60, is_sliding), 2, (25.0, 35.0), 0.2, others_every)
    assert sum(shown) >= 0.8 * len(shown)


def test_requests_on_their_way_count_as_used():
    window = RequestWindow()
    for _ in range(4):
        window.on_sent(100.0)
    window.on_response(102.0, RateLimit(remaining=16, resets_in=58, limit=PER_WINDOW))
    for _ in range(15):
        assert window.wait(102.0) <= 0
        window.on_sent(102.0)
    # Sent by the API before those 15 arrived.
    window.on_response(102.1, RateLimit(remaining=16, resets_in=58, limit=PER_WINDOW))
    assert window.wait(102.1) <= 0
    window.on_sent(102.1)
    assert window.wait(102.1) > 0
    window.on_not_counted()
    assert window.wait(102.1) <= 0
