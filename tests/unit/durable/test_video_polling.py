# SPDX-License-Identifier: Apache-2.0
"""When a video is polled again."""

from __future__ import annotations

import time

import pytest

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.durable.video_polling import Polling


def test_an_interval_is_a_fifth_more_or_less():
    polling = Polling(10.0, time.time() + 1000)
    polling.pause()
    pauses = [polling.pause() for _ in range(200)]
    assert 8 <= min(pauses) < 9
    assert 11 < max(pauses) <= 12


def test_those_that_begin_together_are_not_polled_together():
    pauses = [Polling(10.0, time.time() + 1000).pause() for _ in range(1000)]
    # In no tenth of the interval are there many more than their share, 100.
    assert max(sum(start <= pause < start + 1 for pause in pauses) for start in range(10, 20)) < 150
    # Not at once: Airflow's scheduler is given the time to see off the process that deferred the task.
    assert 10 <= min(pauses) < max(pauses) <= 20


@pytest.mark.parametrize(
    ("error", "least"),
    [
        (errors.RateLimitError("x", retry_after=90), 90),
        (errors.RateLimitError("x"), 10),
        (errors.UnavailableError("x"), 10),
        (errors.NoConnectionError("x"), 10),
    ],
    ids=["429 that says when", "429", "5xx", "no connection"],
)
def test_a_poll_without_a_response_is_repeated(error, least):
    assert Polling(10.0, time.time() + 1000).pause(error) >= least


def test_the_pauses_grow_until_a_response_comes():
    polling = Polling(10.0, time.time() + 1000)
    for _ in range(5):
        grown = polling.pause(errors.UnavailableError("x"))
    assert grown > 20
    assert polling.pause() <= 12
    assert polling.pause(errors.UnavailableError("x")) <= 20


def test_no_pause_goes_beyond_the_end_of_the_wait():
    polling = Polling(10.0, time.time() + 2)
    assert polling.pause(errors.RateLimitError("x", retry_after=90)) <= 2
    assert not polling.is_over
    over = Polling(10.0, time.time() - 1)
    assert over.is_over
    assert over.pause() == 0.0
