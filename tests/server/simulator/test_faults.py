# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import httpx
import pytest

IMAGES = "/v2/images/generations"


@pytest.fixture
def url_of_target(simulator):
    """Return a function that builds a target's request (method, URL, body) and leaves the ledger empty."""

    def build(on):
        if on == "image":
            return "POST", simulator.url + IMAGES, {"model": "seedream-5-lite", "prompt": "a lake"}
        if on == "models":
            return "GET", f"{simulator.url}/v2/models", None
        url = simulator.url_of()
        simulator.http.delete("/_simulator/ledger")
        return "GET", url, None

    return build


def announced(head):
    lines = [line.split(b": ") for line in head.splitlines() if line.lower().startswith(b"content-length")]
    return int(lines[0][1])


TARGETS = pytest.mark.parametrize("on", ["image", "download", "models"])


@TARGETS
@pytest.mark.parametrize("kind", ["drop_before_billing", "drop_after_billing"])
def test_drop_closes_the_connection_without_sending_a_byte(simulator, url_of_target, on, kind):
    target = url_of_target(on)
    simulator.fault(on, kind)
    assert simulator.raw(*target) == (b"", b"")
    if on == "image":
        billed = 0.04 if kind == "drop_after_billing" else 0
        assert (simulator.last()["outcome"], simulator.last()["status"]) == ("dropped", None)
        assert (simulator.last()["billed"], simulator.ledger()["billed_total"]) == (billed, billed)
        assert simulator.balance() == f"{100 - billed:.2f}"
    assert simulator.raw(*target)[0].startswith(b"HTTP/1.1 200")


@TARGETS
def test_truncate_announces_the_full_length_and_sends_half_the_body(simulator, url_of_target, on):
    target = url_of_target(on)
    whole = simulator.raw(*target)[1]
    simulator.fault(on, "truncate")
    head, half = simulator.raw(*target)
    assert head.startswith(b"HTTP/1.1 200")
    # The id and signature differ between the two responses, but their lengths don't.
    assert announced(head) == len(whole)
    assert len(half) == len(whole) // 2
    if on == "image":
        assert simulator.last() | {"status": 200, "billed": 0.04, "outcome": "truncated"} == simulator.last()
    else:
        assert whole.startswith(half)


@TARGETS
def test_wrong_length_sends_the_whole_body_and_announces_more(simulator, url_of_target, on):
    target = url_of_target(on)
    whole = simulator.raw(*target)[1]
    simulator.fault(on, "wrong_length")
    head, body = simulator.raw(*target)
    assert len(body) == len(whole)
    assert announced(head) == len(whole) + 1024
    if on == "image":
        assert simulator.last() | {"status": 200, "billed": 0.04, "outcome": "truncated"} == simulator.last()


@pytest.mark.parametrize("kind", ["truncate", "wrong_length", "drop_after_billing", "drop_before_billing"])
def test_http_client_raises_a_protocol_error_for_a_dropped_or_incomplete_response(simulator, kind):
    simulator.fault("image", kind)
    with pytest.raises(httpx.RemoteProtocolError):
        simulator.post()


@TARGETS
def test_hang_closes_the_connection_without_a_response_after_its_seconds(simulator, url_of_target, on):
    target = url_of_target(on)
    simulator.fault(on, "hang", seconds=0.4)
    began = time.monotonic()
    assert simulator.raw(*target) == (b"", b"")
    assert time.monotonic() - began >= 0.4
    if on == "image":
        assert simulator.last() | {"status": None, "billed": 0.04, "outcome": "hung"} == simulator.last()


def test_hanging_post_stays_in_the_ledger_and_frees_its_slot_when_the_client_disconnects(simulator):
    simulator.set(concurrency=1)
    simulator.fault("image", "hang")
    with simulator.sent_post(prompt="hangs"):
        entry = simulator.eventually(lambda post: post["outcome"] == "hung")
        assert (entry["prompt"], entry["status"], entry["billed"]) == ("hangs", None, 0.04)
    # The hang ends when its client disconnects, which frees the slot.
    deadline = time.monotonic() + 10
    while simulator.post().status_code == 429:
        assert time.monotonic() < deadline
    assert simulator.ledger()["posts"][0]["outcome"] == "hung"


@TARGETS
def test_slow_first_byte_responds_after_its_seconds(simulator, url_of_target, on):
    method, url, body = url_of_target(on)
    simulator.fault(on, "slow_first_byte", seconds=0.4)
    began = time.monotonic()
    with simulator.http.stream(method, url, json=body) as response:
        assert time.monotonic() - began >= 0.4
        assert response.status_code == 200
    if on == "image":
        assert simulator.last() | {"billed": 0.04, "outcome": "delivered"} == simulator.last()


@TARGETS
def test_slow_body_starts_at_once_and_arrives_in_small_pieces(simulator, url_of_target, on):
    method, url, body = url_of_target(on)
    simulator.fault(on, "slow_body", seconds=0.6)
    began = time.monotonic()
    with simulator.http.stream(method, url, json=body) as response:
        first = time.monotonic() - began
        arrivals = [time.monotonic() - began for _ in response.iter_raw(1)]
    assert first < 0.4
    assert 0.5 <= arrivals[-1] < 3
    assert len({round(arrival, 2) for arrival in arrivals}) > 5
    if on == "image":
        simulator.eventually(lambda post: post["outcome"] == "delivered")


@pytest.mark.parametrize(
    ("kind", "outcome", "status"), [("slow_first_byte", "dropped", None), ("slow_body", "truncated", 200)]
)
def test_client_that_disconnects_during_a_slow_response_is_billed(simulator, kind, outcome, status):
    simulator.fault("image", kind, seconds=60)
    with simulator.sent_post() as connection:
        simulator.eventually(lambda post: post["billed"] == 0.04)
        if status:
            assert connection.recv(1) == b"H"
    entry = simulator.eventually(lambda post: post["outcome"] is not None)
    assert (entry["outcome"], entry["status"], entry["billed"]) == (outcome, status, 0.04)


@TARGETS
def test_html_sends_a_page_in_place_of_json_or_an_image(simulator, url_of_target, on):
    method, url, body = url_of_target(on)
    simulator.fault(on, "html")
    response = simulator.http.request(method, url, json=body)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text.startswith("<html>")
    if on == "image":
        assert simulator.last() | {"status": 200, "billed": 0.04, "outcome": "dropped"} == simulator.last()


def test_html_with_an_error_status_bills_nothing(simulator):
    simulator.fault("image", "html", status=502)
    response = simulator.post()
    assert response.status_code == 502
    assert "502 bad_gateway" in response.text
    assert simulator.last() | {"status": 502, "billed": 0, "outcome": "refused"} == simulator.last()


@TARGETS
@pytest.mark.parametrize(
    "status", [400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 599]
)
def test_status_sends_the_documented_error_and_bills_nothing(simulator, url_of_target, on, status):
    method, url, body = url_of_target(on)
    simulator.fault(on, "status", status=status)
    response = simulator.http.request(method, url, json=body)
    assert response.status_code == status
    error = response.json()["error"]
    codes = {400: "invalid_parameter", 401: "invalid_api_key", 402: "quota_exceeded", 429: "rate_limit"}
    assert error["code"] == codes.get(status, error["code"])
    assert error["message"]
    assert error.get("type") == (None if status in (402, 429) else "invalid_request_error")
    if on == "image":
        assert simulator.last() | {"status": status, "billed": 0, "outcome": "refused"} == simulator.last()
        assert simulator.balance() == "100.00"


def test_status_sends_the_given_headers_and_body(simulator):
    simulator.fault(
        "image", "status", status=429, headers={"Retry-After": 7}, body={"error": {"code": "rate_limit"}}
    )
    response = simulator.post()
    assert response.headers["retry-after"] == "7"
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"error": {"code": "rate_limit"}}
    simulator.fault("image", "status", status=502, body="Bad Gateway", headers={"content-type": "text/x-odd"})
    response = simulator.post()
    assert (response.text, response.headers["content-type"]) == ("Bad Gateway", "text/x-odd")


@pytest.mark.parametrize("status", [204, 302, 304])
def test_status_can_be_a_non_error_without_a_body(simulator, status):
    url = simulator.url_of()
    simulator.fault("download", "status", status=status, headers={"Location": "https://example.com/"})
    response = simulator.keyless.get(url)
    assert (response.status_code, response.content) == (status, b"")
    assert response.headers["location"] == "https://example.com/"


@pytest.mark.parametrize("status", [204, 304])
def test_html_with_a_bodiless_status_does_not_affect_the_next_request(simulator, status):
    simulator.fault("models", "html", status=status)
    assert simulator.http.get("/v2/models").status_code == status
    assert simulator.http.get("/v2/models").status_code == 200


def test_status_500_can_come_after_billing(simulator):
    simulator.fault("image", "status", status=500, billed=True)
    assert simulator.post().status_code == 500
    assert simulator.last() | {"status": 500, "billed": 0.04, "outcome": "dropped"} == simulator.last()


def test_hang_can_come_before_billing(simulator):
    simulator.fault("image", "hang", seconds=0, billed=False)
    with pytest.raises(httpx.RemoteProtocolError):
        simulator.post()
    assert simulator.last() | {"status": None, "billed": 0, "outcome": "hung"} == simulator.last()


def test_drop_can_be_delayed(simulator):
    simulator.fault("image", "drop_after_billing", seconds=0.3)
    began = time.monotonic()
    with pytest.raises(httpx.RemoteProtocolError):
        simulator.post()
    assert time.monotonic() - began >= 0.3


def test_faults_hit_only_their_target_in_order_and_the_given_number_of_times(simulator):
    simulator.fault("image", "status", status=503, times=2)
    simulator.fault("image", "status", status=500)
    simulator.fault("models", "status", status=502)
    assert [simulator.post().status_code for _ in range(4)] == [503, 503, 500, 200]
    assert simulator.http.get("/v2/billing/balance").status_code == 200
    assert [simulator.http.get("/v2/models/sketch-mini").status_code for _ in range(2)] == [502, 200]


def test_request_that_is_rejected_anyway_consumes_no_fault(simulator):
    simulator.fault("image", "status", status=503)
    assert simulator.post(model="nope").status_code == 400
    assert simulator.post(prompt="gore").status_code == 422
    assert simulator.http.post(IMAGES, headers={"Authorization": ""}).status_code == 401
    assert simulator.post().status_code == 503


def test_head_request_consumes_no_fault(simulator):
    url = simulator.url_of()
    simulator.fault("download", "status", status=503)
    assert simulator.keyless.head(url).status_code == 200
    assert simulator.keyless.get(url).status_code == 503


def test_pending_faults_can_be_listed_and_cleared(simulator):
    simulator.fault("image", "status", status=503, times=3)
    simulator.post()
    pending = simulator.http.get("/_simulator/faults").json()
    assert pending == {"faults": [{"on": "image", "kind": "status", "status": 503, "times": 2}]}
    assert simulator.http.delete("/_simulator/faults").status_code == 204
    assert simulator.post().status_code == 200


def test_null_fields_of_a_fault_count_as_omitted(simulator):
    simulator.fault(
        "image", "drop_before_billing", status=None, headers=None, body=None, seconds=None, times=None
    )
    assert simulator.raw("POST", simulator.url + IMAGES, {"model": "sketch-mini", "prompt": "x"}) == (
        b"",
        b"",
    )


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"kind": "hang"}, "a fault of the kind hang needs 'on'."),
        (
            {"on": "audio", "kind": "hang"},
            "a fault's 'on' must be 'image', 'video', 'video_status', 'download' or 'models', got 'audio'.",
        ),
        ({"on": "image", "kind": "explode"}, "a fault's 'kind' must be one of"),
        ({"on": "image", "kind": ["hang"]}, "a fault's 'kind' must be one of"),
        ({"on": "image", "kind": "status"}, "a fault of the kind status needs 'status'."),
        (
            {"on": "image", "kind": "status", "status": 99},
            "'status' must be greater than or equal to 200, got 99.",
        ),
        ({"on": "image", "kind": "status", "status": "500"}, "'status' must be a valid integer, got '500'."),
        ({"on": "image", "kind": "hang", "times": 0}, "'times' must be greater than or equal to 1, got 0."),
        (
            {"on": "image", "kind": "hang", "seconds": -1},
            "'seconds' must be greater than or equal to 0, got -1.",
        ),
        (
            {"on": "image", "kind": "hang", "status": 500},
            "a fault of the kind hang has no field 'status': it has on, kind,",
        ),
        ({"on": "image", "kind": "hang", "second": 1}, "a fault of the kind hang has no field 'second'"),
        ({"on": "image", "kind": "truncate", "billed": False}, "a fault of the kind truncate has no field"),
        (
            {"on": "download", "kind": "hang", "billed": True},
            "'billed' is for faults on image and video, not on download.",
        ),
        (
            {"on": "image", "kind": "status", "status": 500, "headers": {"A": "b\r\nC: d"}},
            "header 'A' must be",
        ),
        (
            {"on": "image", "kind": "status", "status": 500, "headers": {"Content-Length": 5}},
            "can't set the header",
        ),
        (
            {"on": "image", "kind": "status", "status": 500, "headers": []},
            "'headers' must be a valid dictionary, got [].",
        ),
        (
            {"on": "image", "kind": "status", "status": 500, "body": 5},
            "'body' must be a valid string or a valid dictionary or a valid list, got 5.",
        ),
        ({"on": "image", "kind": "status", "status": 204, "body": "x"}, "with the status 204 has no body"),
        ("hang", "a fault must be an object"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value),
)
def test_invalid_fault_is_rejected_with_the_reason_and_nothing_is_queued(simulator, fault, sentence):
    good = {"on": "image", "kind": "hang"}
    response = simulator.http.post("/_simulator/faults", json={"faults": [good, fault]})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert sentence in message
    assert message.endswith(".")
    assert simulator.http.get("/_simulator/faults").json() == {"faults": []}


@pytest.mark.parametrize("body", [{}, {"faults": {}}, {"faults": [], "more": 1}, []], ids=str)
def test_body_other_than_a_single_list_of_faults_is_rejected(simulator, body):
    assert simulator.http.post("/_simulator/faults", json=body).status_code == 400


def test_ledger_is_up_to_date_as_soon_as_the_client_sees_the_outcome(simulator):
    for _ in range(50):
        simulator.post()
        assert simulator.last()["outcome"] == "delivered"
        simulator.fault("image", "drop_after_billing")
        simulator.raw("POST", simulator.url + IMAGES, {"model": "sketch-mini", "prompt": "x"})
        assert simulator.last()["outcome"] == "dropped"


def test_large_padded_file_can_be_truncated(simulator):
    simulator.set(file_size=20_000_000)
    url = simulator.url_of()
    simulator.fault("download", "truncate")
    head, body = simulator.raw("GET", url)
    assert (announced(head), len(body)) == (20_000_000, 10_000_000)
