# SPDX-License-Identifier: Apache-2.0
"""The rate limiter, on a clock that the test advances."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from airflow_provider_getimg import retry
from airflow_provider_getimg.api.errors import KilledError, RateLimitError
from airflow_provider_getimg.api.types import RateLimit
from airflow_provider_getimg.batch import concurrency_limit, limiter
from airflow_provider_getimg.batch.in_flight import Slot
from airflow_provider_getimg.batch.limiter import RateLimiter


class Bench:
    """A rate limiter and its clock."""

    def __init__(self, concurrency: int, *, is_open: bool = True) -> None:
        self.now = 100.0
        self.stopping = False
        self.logged: list[str] = []
        log = SimpleNamespace(info=lambda text, *values: self.logged.append(text % values))
        self.limiter = RateLimiter(concurrency, lambda: self.stopping, log, clock=lambda: self.now)
        if is_open:
            # As after some time without a 429.
            self.limiter._limit.value = concurrency

    def free(self) -> bool:
        """Return whether a slot is free now, without waiting for one."""
        with self.limiter._changed:
            return (
                self.limiter._wait() <= 0
                and not self.limiter._paused
                and self.limiter._limit.try_admit(self.limiter.in_flight, self.now)
            )

    def take(self, slots: ExitStack) -> Slot:
        assert self.free()
        slot = slots.enter_context(self.limiter.acquire())
        slot.sent_at = self.now
        return slot

    def pass_until_free(self) -> float:
        """Advance the clock until a slot is free, and return the elapsed seconds."""
        since = self.now
        while not self.free():
            self.now += 0.01
            assert self.now < since + 600
        return self.now - since

    def respond(self, count: int = 1, rate_limit: RateLimit | None = None) -> None:
        for _ in range(count):
            self.limiter.on_response(Slot(sent_at=self.now - 30), rate_limit)

    @property
    def wait(self) -> float:
        with self.limiter._changed:
            return max(0.0, self.limiter._wait())

    def refuse_one(self, retry_after: float | None = None) -> None:
        assert self.free()
        with self.limiter.acquire() as slot:
            slot.sent_at = self.now
            self.limiter.on_rate_limited(slot, RateLimitError("x", retry_after=retry_after))


def test_requests_in_flight_do_not_exceed_the_slots():
    bench = Bench(3)
    with ExitStack() as slots:
        for _ in range(3):
            bench.take(slots)
        assert not bench.free()
    assert bench.free()
    assert bench.limiter.in_flight == 0


def test_slots_open_quickly_one_by_one_while_there_is_no_429():
    bench = Bench(64, is_open=False)
    with ExitStack() as slots:
        for _ in range(concurrency_limit.FIRST_SLOTS):
            bench.take(slots)
        assert not bench.free()
        began = bench.now
        for _ in range(60):
            assert (
                bench.pass_until_free()
                <= concurrency_limit.RAMP_SECONDS / concurrency_limit.FIRST_SLOTS + 0.01
            )
            bench.take(slots)
        assert bench.limiter.limit == 64
        assert bench.now - began < 4
        assert not bench.free()


def test_first_429_stops_the_opening_of_slots():
    bench = Bench(64, is_open=False)
    with ExitStack() as slots:
        for _ in range(5):
            bench.pass_until_free()
            bench.take(slots)
        bench.pass_until_free()
        bench.refuse_one()
        bench.now += 600
        assert not bench.free()
        assert bench.limiter.limit == 5


def test_simultaneous_429s_count_as_one():
    bench = Bench(32)
    with ExitStack() as slots:
        for _ in range(5):
            bench.take(slots)
        with ExitStack() as refused:
            for slot in [bench.take(refused) for _ in range(27)]:
                bench.limiter.on_rate_limited(slot, RateLimitError("x"))
        assert bench.limiter.limit == 5
        assert not bench.free()
        bench.respond(1)
        assert not bench.free()
        # The time of two requests.
        bench.now += 61
        assert bench.free()
        assert bench.limiter.limit == 6


def test_429_that_arrives_late_still_lowers_the_limit():
    bench = Bench(32)
    with ExitStack() as slots:
        first = [slots.enter_context(ExitStack()) for _ in range(3)]
        for slot in first:
            bench.take(slot)
        refused = bench.take(slots)
        # Meanwhile, the three complete, and others take their places.
        bench.now += 30
        for slot in first:
            slot.close()
        for _ in range(3):
            bench.now += 1
            bench.take(slots)
        bench.limiter.on_rate_limited(refused, RateLimitError("x"))
        assert bench.limiter.limit == 3


def test_probe_is_awaited_before_the_next_one():
    bench = Bench(32)
    with ExitStack() as slots:
        for _ in range(5):
            bench.take(slots)
        refused = bench.take(slots)
        # A slow network.
        bench.now += 3
        bench.limiter.on_rate_limited(refused, RateLimitError("x"))
    with ExitStack() as slots:
        for _ in range(5):
            bench.pass_until_free()
            bench.take(slots)
        bench.respond()
        bench.pass_until_free()
        bench.take(slots)
        assert bench.limiter.limit == 6
        assert bench.pass_until_free() >= 2 * 3


def test_rate_limited_probes_become_rarer_up_to_a_limit():
    bench = Bench(32)
    with ExitStack() as slots:
        for _ in range(5):
            bench.take(slots)
        bench.refuse_one()
        gaps = []
        for _ in range(5):
            gaps.append(0)
            while not bench.free():
                bench.respond(1)
                bench.now += 6
                gaps[-1] += 1
            bench.refuse_one()
        # Five slots with requests of 30 s: a response every 6 s.
        assert gaps == [10, 20, 40, 40, 40]
        assert bench.limiter.limit == 5


def test_successful_probe_is_followed_by_more_probes():
    bench = Bench(32)
    with ExitStack() as slots:
        for _ in range(5):
            bench.take(slots)
        bench.refuse_one()
        bench.respond(1)
        assert not bench.free()
        # The time of two requests.
        bench.now += 61
        bench.take(slots)
        began = bench.now
        for _ in range(26):
            bench.pass_until_free()
            bench.take(slots)
        assert bench.limiter.limit == 32
        assert bench.now - began < 3


def test_next_window_allows_as_many_requests_as_the_limit():
    bench = Bench(64)
    with ExitStack() as slots:
        bench.take(slots)
        # 20 a minute, five of them used by others; the minute began with this task's request.
        bench.now += 30
        bench.respond(rate_limit=RateLimit(remaining=14, resets_in=30, limit=20))
        for _ in range(14):
            bench.take(slots)
        assert not bench.free()
        bench.now += 31
        for _ in range(20):
            bench.take(slots)
        assert not bench.free()
        assert bench.wait == pytest.approx(60)
        assert bench.limiter.waiting_for == "waiting for 0:01:00 more (getimg.ai limits requests)"


def test_requests_are_spaced_after_a_429():
    bench = Bench(8)
    bench.refuse_one(retry_after=20)
    bench.now += 20.1
    with ExitStack() as slots:
        bench.take(slots)
        assert not bench.free()
        bench.now += limiter.SPACING
        bench.take(slots)


def test_retry_after_holds_all_requests():
    bench = Bench(4)
    bench.refuse_one(retry_after=20)
    assert bench.wait == 20
    assert not bench.free()
    bench.now += 19.9
    assert not bench.free()
    bench.now += 0.2
    assert bench.free()
    assert bench.limiter.limit == 4
    assert bench.logged == ["getimg.ai limits requests: retrying in 20 seconds. Nothing was billed."]


def test_retry_after_of_zero_still_delays_the_next_request():
    bench = Bench(4)
    bench.refuse_one(retry_after=0)
    assert not bench.free()


def test_no_request_is_sent_once_the_window_is_used_up():
    bench = Bench(4)
    bench.respond(rate_limit=RateLimit(remaining=2, resets_in=30))
    with ExitStack() as slots:
        bench.take(slots)
        bench.take(slots)
        assert not bench.free()
        assert bench.wait == 30
    bench.now += 31
    assert bench.free()


def test_refused_request_leaves_the_window_as_it_was():
    bench = Bench(4)
    bench.respond(rate_limit=RateLimit(remaining=1, resets_in=30))
    bench.refuse_one()
    bench.now += retry.PROBE_FIRST * 1.25
    assert bench.free()


def test_probes_become_rarer_while_other_tasks_hold_all_slots():
    bench = Bench(4)
    waits = []
    for _ in range(60):
        bench.refuse_one()
        waits.append(bench.wait)
        bench.now += waits[-1] + 0.01
    assert waits[0] <= 1.25 * retry.PROBE_FIRST
    assert 0.75 * retry.PROBE_MAX <= waits[-1] <= 1.25 * retry.PROBE_MAX
    assert bench.logged == [
        "Other tasks use all of the account's concurrent requests. Retrying until one is free. Nothing was billed."
    ]
    assert bench.limiter.waiting_for == (
        "waiting for a slot (other tasks use all of the account's concurrent requests)"
    )


def test_paused_request_waits_and_then_continues():
    bench = Bench(4)
    bench.limiter.set_paused(True)
    assert not bench.free()
    took = threading.Event()

    def send() -> None:
        with bench.limiter.acquire():
            took.set()

    thread = threading.Thread(target=send)
    thread.start()
    assert not took.wait(0.3)
    bench.limiter.set_paused(False)
    assert took.wait(10)
    thread.join()


def test_waiting_request_fails_when_the_batch_stops():
    bench = Bench(1)
    failed: list[str] = []

    def send() -> None:
        try:
            with bench.limiter.acquire():
                failed.append("it was sent")
        except KilledError as error:
            failed.append(error.message)

    with bench.limiter.acquire():
        thread = threading.Thread(target=send)
        thread.start()
        bench.stopping = True
        thread.join(10)
        assert failed == ["The batch was stopped before the request was sent."]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_slot_is_released_if_the_request_raises(concurrency):
    bench = Bench(concurrency)
    for _ in range(20):
        with pytest.raises(ZeroDivisionError), bench.limiter.acquire():
            raise ZeroDivisionError
    assert bench.limiter.in_flight == 0


def test_wait_beyond_max_wait_raises_before_a_slot_is_taken():
    bench = Bench(4)
    bench.limiter._max_wait = 60
    bench.respond(rate_limit=RateLimit(remaining=0, resets_in=90))
    with (
        pytest.raises(RateLimitError, match="accepts no requests for the next 90 seconds") as caught,
        bench.limiter.acquire(),
    ):
        pass
    assert caught.value.retry_after == 90
    assert bench.limiter.in_flight == 0
