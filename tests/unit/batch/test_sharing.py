# SPDX-License-Identifier: Apache-2.0
"""Batches that share an account, in simulated time."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count

import pytest

from airflow_provider_getimg.batch.concurrency_limit import ConcurrencyLimit
from airflow_provider_getimg.batch.in_flight import InFlight, Slot

#: How long a 429 takes, as a share of the shortest time that an image takes: a quarter of a second, and on a slow network.
ROUND_TRIPS = [pytest.param(1 / 125, id="near"), pytest.param(1 / 10, id="far")]
#: Minimum and maximum seconds per image: on a real account, and in a simulator that is twenty times as fast.
LATENCIES = [
    pytest.param((25.0, 35.0), id="real"),
    pytest.param((1.25, 1.75), id="twenty-times-as-fast"),
]


@pytest.fixture(autouse=True)
def chance(monkeypatch) -> random.Random:
    """Return a random generator with a fixed seed, which the limits use, too; other tests keep their own."""
    chance = random.Random(7)
    monkeypatch.setattr("airflow_provider_getimg.batch.concurrency_limit.random", chance)
    monkeypatch.setattr("airflow_provider_getimg.retry.random", chance)
    return chance


@dataclass
class Batch:
    """A batch: its rows, its start, and the outcome of its requests."""

    rows: int
    begins_at: float = 0.0
    concurrency: int = 8
    limit: ConcurrencyLimit | None = None
    in_flight: InFlight = field(default_factory=InFlight)
    opens_at: float = 0.0
    images: list[tuple[float, float]] = field(default_factory=list)
    refused: int = 0

    @property
    def ended_at(self) -> float:
        return max(end for _, end in self.images)

    def slots(self, since: float, until: float) -> float:
        """Return the average number of the account's slots that it held in a period."""
        held = (max(0.0, min(end, until) - max(begin, since)) for begin, end in self.images)
        return sum(held) / (until - since)


def run(
    batches: list[Batch],
    slots: list[tuple[float, int]],
    seconds: tuple[float, float],
    chance: random.Random,
    *,
    round_trip: float = 1 / 125,
    sees_others: bool = False,
) -> None:
    """
    Run batches on an account until all rows are done.

    :param slots: The account's limits of concurrent requests, each with the time from which it applies.
    :param seconds: The minimum and maximum time that an image takes.
    :param round_trip: How long a 429 takes, as a share of the shortest time that an image takes.
    :param sees_others: Whether responses show that others send requests, too, as ``X-RateLimit-Remaining`` does.
    """
    now, held = 0.0, 0
    events: list[tuple[float, int, Batch, Slot, float | None]] = []
    number = count()
    while any(len(batch.images) < batch.rows for batch in batches):
        now += seconds[0] / 250
        while events and events[0][0] <= now:
            at, _, batch, slot, took = heapq.heappop(events)
            assert batch.limit is not None
            if took is None:
                batch.refused += 1
                slot.is_refused = True
                others = batch.in_flight.most_beside(slot)
                wait = batch.limit.on_refused(others, now - slot.sent_at, now)
                batch.opens_at = max(batch.opens_at, now + wait)
            else:
                held -= 1
                batch.images.append((at - took, at))
                batch.limit.on_response(took, now)
                if sees_others and any(len(other.in_flight) for other in batches if other is not batch):
                    batch.limit.on_shared(now)
            batch.in_flight.free(slot, now)
        account = next(most for since, most in reversed(slots) if now >= since)
        for batch in chance.sample(batches, len(batches)):
            if now < batch.begins_at or now < batch.opens_at:
                continue
            batch.limit = batch.limit or ConcurrencyLimit(batch.concurrency, now)
            in_flight = len(batch.in_flight)
            if len(batch.images) + in_flight < batch.rows and batch.limit.try_admit(in_flight, now):
                slot = batch.in_flight.take()
                slot.sent_at = now
                took = chance.uniform(*seconds) if held < account else None
                held += took is not None
                response_at = now + (took or round_trip * seconds[0])
                heapq.heappush(events, (response_at, next(number), batch, slot, took))


def last_row_sent(batches: list[Batch]) -> float:
    """Return when the last row was sent: until then, there was work for every slot."""
    return max(begin for batch in batches for begin, _ in batch.images)


@pytest.mark.parametrize("seconds", LATENCIES)
@pytest.mark.parametrize("concurrency", [1, 4, 5, 8, 16, 64])
def test_single_batch_uses_nearly_all_slots_with_few_429s(concurrency, seconds, chance):
    for _ in range(4):
        batch = Batch(100, concurrency=concurrency)
        run([batch], [(0, 5)], seconds, chance)
        assert batch.slots(0, last_row_sent([batch])) >= 0.97 * min(concurrency, 5)
        assert batch.refused <= 0.05 * (100 + batch.refused) + 1


@pytest.mark.parametrize("round_trip", [1 / 20, 1 / 5, 1])
@pytest.mark.parametrize("seconds", [*LATENCIES, pytest.param((0.5, 0.5), id="fast-model")])
def test_slow_429s_do_not_cause_more_of_them(seconds, round_trip, chance):
    # In the last case, some responses arrive before the first 429, and the images of five slots at the same time.
    batch = Batch(100, concurrency=16)
    run([batch], [(0, 5)], seconds, chance, round_trip=round_trip)
    assert batch.slots(0, last_row_sent([batch])) >= 0.94 * 5
    # At most the initial excess over the limit, and a few probes.
    assert batch.refused <= (16 - 5) + 4


@pytest.mark.parametrize("seconds", LATENCIES)
@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
def test_two_batches_that_start_together_share_the_slots(seconds, round_trip, chance):
    for _ in range(4):
        batches = [Batch(100), Batch(100, seconds[0] / 100)]
        run(batches, [(0, 5)], seconds, chance, round_trip=round_trip, sees_others=True)
        end = last_row_sent(batches)
        assert sum(batch.slots(0, end) for batch in batches) >= 0.9 * 5
        together = min(batch.ended_at for batch in batches)
        # Half of its share is a quarter of the slots.
        assert min(batch.slots(0, together) for batch in batches) >= 5 / 4


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
def test_batch_and_single_images_that_start_later_are_not_starved(round_trip, chance):
    for _ in range(4):
        late = [Batch(100, 200.0), Batch(1, 215.0), Batch(1, 230.0)]
        batches = [Batch(200), *late]
        run(batches, [(0, 5)], (25.0, 35.0), chance, round_trip=round_trip, sees_others=True)
        assert sum(batch.slots(0, last_row_sent(batches)) for batch in batches) >= 0.9 * 5
        assert late[0].slots(200, min(batches[0].ended_at, late[0].ended_at)) >= 5 / 4
        # Four minutes, where an image takes half a minute.
        assert max(min(begin for begin, _ in batch.images) - batch.begins_at for batch in late) < 240


def test_batch_follows_a_limit_that_falls_and_rises(chance):
    for _ in range(4):
        batch = Batch(400, concurrency=16)
        run([batch], [(0, 8), (600, 3), (1200, 8)], (25.0, 35.0), chance)
        assert batch.slots(0, 600) >= 0.97 * 8
        assert batch.slots(600, 1200) >= 0.97 * 3
        assert batch.slots(1200, last_row_sent([batch])) >= 0.8 * 8
        assert batch.refused <= 0.08 * 400
