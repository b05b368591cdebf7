# SPDX-License-Identifier: Apache-2.0
"""The pace against a clock that stands still until it is told to go on."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from airflow_provider_getimg.api.errors import KilledError, RateLimitError
from airflow_provider_getimg.api.types import RateLimit
from airflow_provider_getimg.batch import limiter as module
from airflow_provider_getimg.batch.limiter import RateLimiter


class Bench:
    """A pace, its clock, and slots that are held."""

    def __init__(self, concurrency: int) -> None:
        self.now = 100.0
        self.stopping = False
        self.told: list[str] = []
        log = SimpleNamespace(info=lambda text, *values: self.told.append(text % values))
        self.pace = RateLimiter(concurrency, lambda: self.stopping, log, clock=lambda: self.now)

    def free(self) -> bool:
        """Tell whether a slot is free now, without waiting for one."""
        with self.pace._changed:
            return (
                self.pace._wait() <= 0
                and not self.pace._held
                and self.pace.in_flight < self.pace._limit_now()
            )

    def take(self, slots: ExitStack) -> None:
        assert self.free()
        slots.enter_context(self.pace.acquire())

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


def test_a_refusal_without_a_time_finds_the_limit_and_then_tries_one_more_now_and_then():
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
        # The burst counts as one failure: the first probe is due soon.
        bench.now += module.PROBE_FIRST * 2
        assert bench.free()
        assert bench.pace.limit == 6


def test_probes_that_are_refused_become_rare_and_those_that_go_well_frequent():
    bench = Bench(32)
    with ExitStack() as slots:
        for _ in range(5):
            bench.take(slots)
        bench.refuse_one()
        gaps = []
        for _ in range(5):
            since = bench.now
            while not bench.free():
                bench.now += 0.5
            gaps.append(bench.now - since)
            bench.refuse_one()
        assert gaps == sorted(gaps)
        assert gaps[-1] > 4 * gaps[0]
        assert bench.pace.limit == 5
        # The account's limit is raised: nothing is refused any more.
        steps = []
        for _ in range(12):
            while not bench.free():
                bench.now += 0.5
            steps.append(bench.pace.limit)
            bench.take(slots)
        assert bench.pace.limit > 12


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
    bench.pace.on_response(RateLimit(remaining=2, resets_in=30))
    with ExitStack() as slots:
        bench.take(slots)
        bench.take(slots)
        assert not bench.free()
        assert bench.pace.wait == 30
    bench.now += 31
    assert bench.free()


def test_alone_and_refused_it_backs_off():
    bench = Bench(4)
    waits = []
    for _ in range(6):
        bench.refuse_one()
        waits.append(bench.pace.wait)
        bench.now += waits[-1] + 0.01
    assert waits[0] <= module.BACKOFF_FIRST
    assert module.BACKOFF_LIMIT / 2 <= waits[-1] <= module.BACKOFF_LIMIT


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
    bench.pace.on_response(RateLimit(remaining=0, resets_in=90))
    with (
        pytest.raises(RateLimitError, match="takes no more requests for 90 seconds") as caught,
        bench.pace.acquire(),
    ):
        pass
    assert caught.value.retry_after == 90
    assert bench.pace.in_flight == 0
