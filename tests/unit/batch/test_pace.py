# SPDX-License-Identifier: Apache-2.0
"""The pace against a clock that stands still until it is told to go on."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from airflow_provider_getimg import retry
from airflow_provider_getimg.api.errors import KilledError, RateLimitError
from airflow_provider_getimg.api.types import RateLimit
from airflow_provider_getimg.batch import concurrency_limit, limiter
from airflow_provider_getimg.batch.limiter import RateLimiter


class Bench:
    """A pace, its clock, and slots that are held."""

    def __init__(self, concurrency: int, *, is_open: bool = True) -> None:
        self.now = 100.0
        self.stopping = False
        self.told: list[str] = []
        log = SimpleNamespace(info=lambda text, *values: self.told.append(text % values))
        self.pace = RateLimiter(concurrency, lambda: self.stopping, log, clock=lambda: self.now)
        if is_open:
            # As after a while in which nothing was refused.
            self.pace._limit.value = concurrency

    def free(self) -> bool:
        """Tell whether a slot is free now, without waiting for one."""
        with self.pace._changed:
            return (
                self.pace._wait() <= 0
                and not self.pace._held
                and self.pace._limit.allows(self.pace.in_flight, self.now)
            )

    def take(self, slots: ExitStack) -> None:
        assert self.free()
        slots.enter_context(self.pace.acquire())

    def pass_until_free(self) -> float:
        """Let time pass until a slot is free, and return how much."""
        since = self.now
        while not self.free():
            self.now += 0.01
            assert self.now < since + 600
        return self.now - since

    def respond(self, count: int) -> None:
        for _ in range(count):
            self.pace.on_response(30.0, None)

    def refuse_one(self, retry_after: float | None = None) -> None:
        assert self.free()
        with self.pace.acquire():
            self.pace.on_rate_limited(RateLimitError("x", retry_after=retry_after))


def test_so_many_are_on_their_way_and_no_more():
    bench = Bench(3)
    with ExitStack() as slots:
        for _ in range(3):
            bench.take(slots)
        assert not bench.free()
    assert bench.free()
    assert bench.pace.in_flight == 0


def test_slots_open_one_by_one_and_fast_while_nothing_is_refused():
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
        assert bench.pace.limit == 64
        assert bench.now - began < 4
        assert not bench.free()


def test_the_first_refusal_ends_the_opening():
    bench = Bench(64, is_open=False)
    with ExitStack() as slots:
        for _ in range(5):
            bench.pass_until_free()
            bench.take(slots)
        bench.pass_until_free()
        bench.refuse_one()
        bench.now += 600
        assert not bench.free()
        assert bench.pace.limit == 5


def test_many_that_are_refused_together_count_as_one():
    bench = Bench(32)
    with ExitStack() as slots:
        for _ in range(5):
            bench.take(slots)
        with ExitStack() as refused:
            for _ in range(27):
                bench.take(refused)
            for _ in range(27):
                bench.pace.on_rate_limited(RateLimitError("x"))
                # As the refused request leaves its slot, one after another.
                bench.pace._in_flight -= 1
            bench.pace._in_flight += 27
        assert bench.pace.limit == 5
        assert not bench.free()
        bench.respond(1)
        assert not bench.free()
        # The time of two requests.
        bench.now += 61
        assert bench.free()
        assert bench.pace.limit == 6


def test_looks_that_are_refused_become_rare():
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
        # Of the time of a request, 30 s, five slots take six each.
        assert gaps == [10, 20, 40, 40, 40]
        assert bench.pace.limit == 5


def test_a_look_that_goes_well_is_followed_by_others():
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
        assert bench.pace.limit == 32
        assert bench.now - began < 3


def test_a_window_takes_what_the_last_one_took():
    bench = Bench(64)
    with ExitStack() as slots:
        bench.take(slots)
        # 20 a minute, of which others have had five; and the minute began with our request.
        bench.now += 30
        bench.pace.on_response(30.0, RateLimit(remaining=14, resets_in=30, limit=20))
        for _ in range(14):
            bench.take(slots)
        assert not bench.free()
        bench.now += 31
        for _ in range(20):
            bench.take(slots)
        assert not bench.free()
        assert bench.pace.wait == pytest.approx(60)
        assert bench.pace.waiting_for == "waiting for 0:01:00 more (getimg.ai limits requests)"


def test_once_limited_requests_follow_one_another_with_a_gap():
    bench = Bench(8)
    bench.refuse_one(retry_after=20)
    bench.now += 20.1
    with ExitStack() as slots:
        bench.take(slots)
        assert not bench.free()
        bench.now += limiter.SPACING
        bench.take(slots)


def test_a_time_that_is_asked_for_closes_for_all():
    bench = Bench(4)
    bench.refuse_one(retry_after=20)
    assert bench.pace.wait == 20
    assert not bench.free()
    bench.now += 19.9
    assert not bench.free()
    bench.now += 0.2
    assert bench.free()
    assert bench.pace.limit == 4
    assert bench.told == ["getimg.ai limits requests: asking again in 20 seconds. Nothing was billed."]


def test_a_server_that_says_now_is_not_hammered():
    bench = Bench(4)
    bench.refuse_one(retry_after=0)
    assert not bench.free()


def test_nothing_is_sent_where_the_api_says_that_nothing_is_left():
    bench = Bench(4)
    bench.pace.on_response(30.0, RateLimit(remaining=2, resets_in=30))
    with ExitStack() as slots:
        bench.take(slots)
        bench.take(slots)
        assert not bench.free()
        assert bench.pace.wait == 30
    bench.now += 31
    assert bench.free()


def test_crowded_out_it_looks_for_a_slot_less_and_less_often():
    bench = Bench(4)
    waits = []
    for _ in range(60):
        bench.refuse_one()
        waits.append(bench.pace.wait)
        bench.now += waits[-1] + 0.01
    assert waits[0] <= 1.25 * retry.POLL_FIRST
    assert 0.75 * retry.POLL_MAX <= waits[-1] <= 1.25 * retry.POLL_MAX
    assert bench.told == [
        "Other tasks hold all concurrent requests of the account. Retrying until one is free. Nothing was billed."
    ]
    assert bench.pace.waiting_for == (
        "waiting for a slot (other tasks hold all concurrent requests of the account)"
    )


def test_what_is_held_waits_and_goes_on():
    bench = Bench(4)
    bench.pace.pause(True)
    assert not bench.free()
    took = threading.Event()

    def ask() -> None:
        with bench.pace.acquire():
            took.set()

    thread = threading.Thread(target=ask)
    thread.start()
    assert not took.wait(0.3)
    bench.pace.pause(False)
    assert took.wait(10)
    thread.join()


def test_who_waits_is_told_when_all_stops():
    bench = Bench(1)
    failed: list[str] = []

    def ask() -> None:
        try:
            with bench.pace.acquire():
                failed.append("it was sent")
        except KilledError as error:
            failed.append(error.message)

    with bench.pace.acquire():
        thread = threading.Thread(target=ask)
        thread.start()
        bench.stopping = True
        thread.join(10)
        assert failed == ["The batch was stopped before the request was sent."]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_slots_are_given_back_whatever_happens(concurrency):
    bench = Bench(concurrency)
    for _ in range(20):
        with pytest.raises(ZeroDivisionError), bench.pace.acquire():
            raise ZeroDivisionError
    assert bench.pace.in_flight == 0


def test_a_wait_that_is_too_long_is_told_before_anything_is_noted():
    bench = Bench(4)
    bench.pace._max_wait = 60
    bench.pace.on_response(30.0, RateLimit(remaining=0, resets_in=90))
    with (
        pytest.raises(RateLimitError, match="takes no more requests for 90 seconds") as caught,
        bench.pace.acquire(),
    ):
        pass
    assert caught.value.retry_after == 90
    assert bench.pace.in_flight == 0
