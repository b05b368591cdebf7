# SPDX-License-Identifier: Apache-2.0
"""An account's limits: those of a real account, with scaled time, and changed at run time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise

import pytest

ACCOUNT = {"latency": 25, "max_latency": 35, "rpm": 20, "concurrency": 5}


def settings_of(simulator):
    return simulator.http.get("/_simulator/settings").json()


def seconds_taken(post):
    received, ended = (datetime.fromisoformat(post[name]) for name in ("received_at", "ended_at"))
    return (ended - received).total_seconds()


def test_account_preset_applies_except_where_an_option_overrides_it(start):
    with start("--rpm", "7", "--preset", "account", "--time-scale", "20") as simulator:
        settings = settings_of(simulator)
        assert settings == {**settings, **ACCOUNT, "rpm": 7, "time_scale": 20}


def test_account_preset_can_be_set_at_run_time_with_overrides(simulator):
    before = settings_of(simulator)
    simulator.http.put(
        "/_simulator/settings", json={"preset": "account", "concurrency": 3}
    ).raise_for_status()
    assert settings_of(simulator) == {**before, **ACCOUNT, "concurrency": 3}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"preset": "large"}, "preset must be 'account', got 'large'."),
        ({"preset": ["account"]}, "preset must be 'account', got ['account']."),
        ({"time_scale": 0}, "time_scale must be greater than or equal to 1, got 0."),
        ({"time_scale": 1.5}, "time_scale must be a valid integer, got 1.5."),
        ({"preset": "account", "rpm": "20"}, "rpm must be a valid integer, got '20'."),
        ({"speed": 1}, "there is no setting 'speed': there are concurrency, download_latency, "),
    ],
    ids=str,
)
def test_invalid_setting_is_rejected_with_the_reason_and_changes_nothing(simulator, change, sentence):
    before = settings_of(simulator)
    response = simulator.http.put("/_simulator/settings", json=change)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(sentence)
    assert settings_of(simulator) == before


def test_image_takes_a_random_time_between_latency_and_max_latency(simulator):
    simulator.set(latency=25, max_latency=35, time_scale=100)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: simulator.post(), range(16)))
    times = sorted(map(seconds_taken, simulator.ledger()["posts"]))
    assert times[0] >= 0.25
    # By chance, 16 of them are this close once in 50,000 runs.
    assert times[-1] - times[0] > 0.04


@pytest.mark.parametrize("header", ["retry-after", "x-ratelimit-reset"])
def test_client_that_waits_as_long_as_the_header_says_is_served(simulator, header):
    simulator.set(rpm=1, time_scale=60)
    for _ in range(3):
        assert simulator.post().status_code == 200
        refused = simulator.post()
        assert refused.status_code == 429
        value = float(refused.headers[header])
        wait = value - time.time() if header == "x-ratelimit-reset" else value
        assert 0 < wait <= 1.001
        time.sleep(wait)
    served = [post["received_at"] for post in simulator.ledger()["posts"] if post["status"] == 200]
    for one, other in pairwise(map(datetime.fromisoformat, served)):
        # A minute is a second here.
        assert (other - one).total_seconds() >= 0.99


@pytest.mark.parametrize(("scale", "dated"), [(1, True), (20, False)])
def test_date_header_is_omitted_and_reset_time_is_fractional_when_time_is_scaled(simulator, scale, dated):
    simulator.set(time_scale=scale, rpm=5)
    response = simulator.post()
    assert ("date" in response.headers) is dated
    assert ("." in response.headers["x-ratelimit-reset"]) is not dated


@pytest.mark.parametrize(("kind", "status"), [("slow_first_byte", 200), ("status", 503)])
def test_fault_delays_are_scaled(simulator, kind, status):
    simulator.set(time_scale=100)
    simulator.fault("image", kind, seconds=30, **({"status": status} if kind == "status" else {}))
    assert simulator.post().status_code == status
    assert 0.3 <= seconds_taken(simulator.last()) < 5


def test_download_latency_and_media_lifetime_are_scaled(simulator):
    simulator.set(download_latency=30, media_lifetime=200, time_scale=100)
    item = simulator.post().json()["data"][0]
    deleted_in = datetime.fromisoformat(item["deletes_at"]).timestamp() - time.time()
    assert deleted_in <= 2
    began = time.monotonic()
    assert simulator.keyless.get(item["url"]).status_code == 200
    assert 0.3 <= time.monotonic() - began < 5
    time.sleep(max(0.0, datetime.fromisoformat(item["deletes_at"]).timestamp() - time.time()))
    assert simulator.keyless.get(item["url"]).status_code == 410


def test_rate_limit_can_be_changed_at_run_time(simulator):
    for rpm in (1, 3, 2):
        simulator.set(rpm=rpm)
        responses = [simulator.post() for _ in range(rpm + 1)]
        assert [response.status_code for response in responses] == [200] * rpm + [429]
        assert {response.headers["x-ratelimit-limit"] for response in responses} == {str(rpm)}


def test_concurrency_limit_can_be_changed_while_requests_are_running(simulator):
    simulator.set(concurrency=1, latency=0.5)

    def statuses():
        with ThreadPoolExecutor(4) as threads:
            return sorted(
                response.status_code for response in threads.map(lambda _: simulator.post(), range(4))
            )

    assert statuses() == [200, 429, 429, 429]
    simulator.set(concurrency=3)
    assert statuses() == [200, 200, 200, 429]
    simulator.set(concurrency=2)
    with simulator.sent_post(), simulator.sent_post():
        while len(simulator.ledger()["posts"]) < 10 or simulator.last()["prompt"] is None:
            time.sleep(0.01)
        # The two requests in progress still complete.
        simulator.set(concurrency=1)
        assert simulator.post().status_code == 429
        simulator.eventually(
            lambda _: [post["status"] for post in simulator.ledger()["posts"][-3:-1]] == [200, 200]
        )
    assert statuses() == [200, 429, 429, 429]
