# SPDX-License-Identifier: Apache-2.0
"""When a video is polled again."""

from __future__ import annotations

import time

import pytest

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.durable.video_polling import Polling


def test_interval_varies_by_up_to_a_fifth():
    polling = Polling(10.0, time.time() + 1000)
    polling.pause()
    pauses = [polling.pause() for _ in range(200)]
    assert 8 <= min(pauses) < 9
    assert 11 < max(pauses) <= 12


def test_videos_that_start_together_are_not_polled_together():
    pauses = [Polling(10.0, time.time() + 1000).pause() for _ in range(1000)]
    # No tenth of the interval has many more polls than its share, 100.
    assert max(sum(start <= pause < start + 1 for pause in pauses) for start in range(10, 20)) < 150
    # Not immediately: Airflow's scheduler needs time to handle the end of the process that deferred the task.
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
def test_failed_poll_is_followed_by_at_least_the_interval_or_retry_after(error, least):
    assert Polling(10.0, time.time() + 1000).pause(error) >= least


def test_pauses_grow_until_a_poll_succeeds():
    polling = Polling(10.0, time.time() + 1000)
    for _ in range(5):
        grown = polling.pause(errors.UnavailableError("x"))
    assert grown > 20
    assert polling.pause() <= 12
    assert polling.pause(errors.UnavailableError("x")) <= 20


def test_pause_never_exceeds_the_remaining_wait():
    polling = Polling(10.0, time.time() + 2)
    assert polling.pause(errors.RateLimitError("x", retry_after=90)) <= 2
    assert not polling.is_over
    over = Polling(10.0, time.time() - 1)
    assert over.is_over
    assert over.pause() == 0.0
