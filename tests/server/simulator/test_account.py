# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import urlsplit

import pytest

from airflow_provider_getimg.simulator.account import Limits
from airflow_provider_getimg.simulator.errors import ApiError
from airflow_provider_getimg.simulator.request_log import RequestLog
from airflow_provider_getimg.simulator.settings import Settings

BARE_429 = {"message", "code"}


def test_ledger_has_one_entry_per_post_with_the_documented_fields(simulator):
    before = datetime.now(UTC) - timedelta(seconds=1)
    for _ in range(2):
        simulator.post(prompt="the same")
    simulator.post(model="nope")
    first, second, third = simulator.ledger()["posts"]
    assert before < datetime.fromisoformat(first["received_at"]) < datetime.now(UTC) + timedelta(seconds=1)
    expected = {
        "kind": "image",
        "model": "seedream-5-lite",
        "prompt": "the same",
        "seconds": None,
        "status": 200,
        "billed": 0.04,
        "outcome": "delivered",
    }
    for entry in (first, second):
        assert entry == {**expected, **{name: entry[name] for name in ("id", "received_at", "ended_at")}}
    assert (third["model"], third["status"], third["billed"], third["outcome"]) == ("nope", 400, 0, "refused")
    assert len({first["id"], second["id"], third["id"]}) == 3
    assert simulator.ledger()["billed_total"] == 0.08


def test_cost_of_a_hundred_images_has_no_rounding_error(simulator):
    for _ in range(100):
        simulator.post()
    response = simulator.http.get("/_simulator/ledger")
    assert '"billed_total":4.0}' in response.text
    assert simulator.balance() == "96.00"


@pytest.mark.parametrize(
    ("fields", "price", "balance"),
    [
        ({}, 0.04, "99.96"),
        ({"model": "atelier-pro"}, 0.09, "99.91"),
        ({"model": "atelier-pro", "resolution": "1K"}, 0.06, "99.94"),
        ({"model": "atelier-pro", "resolution": "4K"}, 0.24, "99.76"),
        ({"model": "sketch-mini"}, 0.0025, "99.9975"),
        ({"model": "preview-unpriced"}, 0.05, "99.95"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_price_depends_on_model_and_resolution(simulator, fields, price, balance):
    usage = simulator.post(**fields).json()["usage"]
    assert (usage["unit_price"], usage["total_cost"], simulator.last()["billed"]) == (price, price, price)
    assert simulator.balance() == balance


def test_request_gets_a_402_while_the_balance_is_too_low(simulator):
    simulator.http.put("/_simulator/balance", json={"balance": "0.10"})
    assert [simulator.post().status_code for _ in range(3)] == [200, 200, 402]
    response = simulator.post()
    assert response.json()["error"]["code"] == "quota_exceeded"
    assert simulator.balance() == "0.02"
    assert simulator.last()["billed"] == 0
    simulator.http.put("/_simulator/balance", json={"balance": 0.04})
    assert simulator.post().status_code == 200
    assert simulator.balance() == "0.00"


def test_concurrent_images_cannot_spend_the_same_balance(simulator):
    simulator.http.put("/_simulator/balance", json={"balance": "0.04"})
    simulator.fault("image", "hang", billed=False)
    simulator.set(latency=0.5)
    with simulator.sent_post():
        simulator.eventually(lambda post: post["outcome"] == "hung")
        # The unbilled hang reserves nothing of the balance; the image being made does.
        with simulator.sent_post(prompt="being made"):
            simulator.eventually(lambda post: post["prompt"] == "being made")
            assert simulator.post().status_code == 402
            while (outcome := simulator.ledger()["posts"][1]["outcome"]) is None:
                time.sleep(0.01)
            assert outcome == "delivered"


@pytest.mark.parametrize("balance", ["a lot", "-1", "NaN", "Infinity", "1e99", None, True, [1]], ids=str)
def test_invalid_balance_is_rejected(simulator, balance):
    response = simulator.http.put("/_simulator/balance", json={"balance": balance})
    assert response.status_code == 400
    assert "amount in USD" in response.json()["error"]["message"]
    assert simulator.balance() == "100.00"


def test_costs_are_the_billed_amounts_by_date(simulator):
    for _ in range(3):
        simulator.post()
    simulator.post(prompt="gore")
    now = datetime.now(UTC)
    query = {"start": (now - timedelta(days=2)).isoformat(), "end": (now + timedelta(minutes=1)).isoformat()}
    costs = simulator.http.get("/v2/billing/costs", params=query).json()
    assert (costs["currency"], costs["total_cost"]) == ("USD", 0.12)
    by_date = {entry["date"]: entry["cost"] for entry in costs["data"]}
    assert list(by_date) == sorted(by_date)
    assert by_date[(now - timedelta(days=1)).date().isoformat()] == 0
    assert sum(by_date.values()) == 0.12
    past = {"start": "2020-01-01T00:00:00+02:00", "end": "2020-01-02T00:00:00+02:00"}
    costs = simulator.http.get("/v2/billing/costs", params=past).json()
    assert costs["total_cost"] == 0
    assert costs["start"] == "2019-12-31T22:00:00.000Z"
    assert costs["data"] == [{"date": "2019-12-31", "cost": 0}, {"date": "2020-01-01", "cost": 0}]


MILLISECOND = timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("start", "end", "cost"),
    [(0, 1, 0.04), (-1, 0, 0.04), (1, 2, 0), (-2, -1, 0)],
    ids=["from the very moment", "to the very moment", "later", "earlier"],
)
def test_costs_include_the_exact_start_and_end_of_the_period(simulator, start, end, cost):
    simulator.post()
    moment = datetime.fromisoformat(simulator.last()["received_at"])
    query = {"start": moment + start * MILLISECOND, "end": moment + end * MILLISECOND}
    texts = {name: at.isoformat(timespec="milliseconds") for name, at in query.items()}
    assert simulator.http.get("/v2/billing/costs", params=texts).json()["total_cost"] == cost


def test_daily_cost_excludes_what_was_billed_outside_the_period_on_the_same_day(simulator):
    simulator.post()
    now = datetime.now(UTC)
    query = {
        "start": (now + timedelta(seconds=1)).isoformat(),
        "end": (now + timedelta(seconds=2)).isoformat(),
    }
    costs = simulator.http.get("/v2/billing/costs", params=query).json()
    assert (costs["total_cost"], {entry["cost"] for entry in costs["data"]}) == (0, {0})


def test_rate_limit_headers_are_absent_without_a_rate_limit(simulator):
    assert not [name for name in simulator.post().headers if name.startswith("x-ratelimit")]


def test_request_above_the_rate_limit_gets_a_429_with_retry_after_and_is_not_billed(simulator):
    simulator.set(rpm=2)
    first, _, third = (simulator.post() for _ in range(3))
    assert (first.headers["x-ratelimit-limit"], first.headers["x-ratelimit-remaining"]) == ("2", "1")
    assert 55 < int(first.headers["x-ratelimit-reset"]) - time.time() <= 61
    assert third.status_code == 429
    assert third.headers["x-ratelimit-remaining"] == "0"
    assert 55 < int(third.headers["retry-after"]) <= 60
    assert third.json()["error"]["code"] == "rate_limit"
    assert set(third.json()["error"]) == BARE_429
    assert simulator.last()["billed"] == 0
    # Models and the balance are not rate-limited.
    assert simulator.balance() == "99.92"


def test_rate_limit_window_ends_after_a_minute():
    now = [1000.0]
    limits = Limits(Settings(rpm=1), clock=lambda: now[0])
    with limits.admit():
        pass
    now[0] += 59.5
    with pytest.raises(ApiError) as refusal, limits.admit():
        pass
    assert refusal.value.headers == {"Retry-After": "1"}
    now[0] += 0.5
    assert limits.headers()["X-RateLimit-Remaining"] == "1"
    with limits.admit():
        assert limits.headers()["X-RateLimit-Reset"] == "1120"


def test_scaled_rate_limit_window_ends_at_the_announced_time():
    now = [1000.0]
    limits = Limits(Settings(rpm=1, time_scale=7), clock=lambda: now[0])
    with limits.admit():
        now[0] += 0.0001
    with pytest.raises(ApiError) as refusal, limits.admit():
        pass
    assert refusal.value.headers == {"Retry-After": "8.572"}
    assert limits.headers()["X-RateLimit-Reset"] == "1008.572"
    now[0] += 8.572
    with limits.admit():
        pass


def test_request_above_the_concurrency_limit_gets_a_429_without_retry_after(simulator):
    simulator.set(concurrency=2)
    simulator.fault("image", "hang", times=2)
    with ExitStack() as hanging:
        for prompt in ("first", "second"):
            hanging.enter_context(simulator.sent_post(prompt=prompt))
            simulator.eventually(
                lambda post, prompt=prompt: (post["prompt"], post["outcome"]) == (prompt, "hung")
            )
        response = simulator.post()
        assert response.status_code == 429
        assert "retry-after" not in response.headers
        assert set(response.json()["error"]) == BARE_429
        assert simulator.last()["outcome"] == "refused"
    deadline = time.monotonic() + 10
    while simulator.post().status_code == 429:
        assert time.monotonic() < deadline
    for _ in range(20):
        assert simulator.post().status_code == 200


def test_ledger_lists_an_image_as_unbilled_until_its_latency_has_passed(simulator):
    simulator.set(latency=0.5)
    began = time.monotonic()
    with simulator.sent_post():
        entry = simulator.eventually(lambda post: post["model"] is not None)
        assert (entry["outcome"], entry["status"], entry["billed"]) == (None, None, 0)
        entry = simulator.eventually(lambda post: post["outcome"] == "delivered")
        assert time.monotonic() - began >= 0.5
        assert (entry["status"], entry["billed"]) == (200, 0.04)


def test_client_that_disconnects_while_its_image_is_made_is_billed(simulator):
    simulator.set(latency=0.5)
    with simulator.sent_post():
        simulator.eventually(lambda post: post["prompt"] == "a lake")
    entry = simulator.eventually(lambda post: post["outcome"] is not None)
    assert (entry["outcome"], entry["status"], entry["billed"]) == ("dropped", None, 0.04)


def test_client_that_disconnects_while_sending_its_request_is_not_billed(simulator):
    where = urlsplit(simulator.url)
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.sendall(
            b"POST /v2/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk_for_tests\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
    entry = simulator.eventually(lambda post: post["outcome"] == "dropped")
    assert (entry["status"], entry["billed"]) == (None, 0)


def test_ledger_can_be_emptied_without_changing_the_balance(simulator):
    simulator.post()
    assert simulator.http.delete("/_simulator/ledger").status_code == 204
    assert simulator.ledger() == {"posts": [], "billed_total": 0}
    assert simulator.balance() == "99.96"


def test_valid_setting_is_not_applied_beside_an_invalid_one(simulator):
    response = simulator.http.put("/_simulator/settings", json={"rpm": 5, "latency": -1})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "latency must be greater than or equal to 0, got -1."
    assert simulator.http.get("/_simulator/settings").json()["rpm"] == 0


@pytest.mark.parametrize(
    "change",
    [{"rpm": 1.5}, {"rpm": True}, {"file_size": -1}, {"latency": "1"}, {"speed": 1}, {"latency": 10**400}],
    ids=str,
)
def test_invalid_setting_is_rejected(simulator, change):
    assert simulator.http.put("/_simulator/settings", json=change).status_code == 400


def test_ledger_keeps_only_the_first_4096_characters_of_a_rejected_prompt(simulator):
    simulator.post(prompt="x" * 2_000_000)
    assert simulator.last()["prompt"] == "x" * 4096


def test_fractions_of_a_cent_add_up_exactly():
    ledger = RequestLog()
    for _ in range(4000):
        ledger.open("image").billed = Decimal("0.0025")
    assert ledger.public()["billed_total"] == 10
