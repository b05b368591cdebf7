# SPDX-License-Identifier: Apache-2.0
"""The client over real sockets against the simulator, whose ledger counts the requests."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.api.types import Generation
from tests.support import raw_servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_getimg.testing import GetimgSimulator

REQUEST = ImageRequest(model="seedream-5-lite", prompt="A red fox")


@pytest.fixture
def client(simulator: GetimgSimulator) -> Iterator[GetimgClient]:
    with GetimgClient(simulator.api_key, base_url=simulator.url, timeout=20) as client:
        yield client


def fault(simulator: GetimgSimulator, kind: str, on: str = "image", **fields: object) -> None:
    simulator.faults.add({"on": on, "kind": kind, **fields})


def test_generation_is_posted_once_and_its_response_is_returned(simulator, client):
    generation = client.generate_image(REQUEST)
    [post] = simulator.ledger.raw()["posts"]
    assert post["prompt"] == "A red fox"
    assert generation.id == post["id"]
    assert generation.status == "completed"
    assert generation.usage.total_cost == Decimal("0.04")
    assert set(generation.to_json()) == {"id", "status", "model", "data", "usage"}


def test_catalogue_and_balance_requests_are_free(simulator, client):
    models = {model.id: model for model in client.list_models()}
    assert {model.type for model in models.values()} == {"image", "video"}
    assert {model.type for model in client.list_models("image")} == {"image"}
    assert client.get_model("seedream-5-lite") == models["seedream-5-lite"]
    assert client.get_balance().currency == "USD"
    assert not simulator.ledger


def test_costs_are_returned_for_a_range_in_a_time_zone_other_than_utc(simulator, client):
    client.generate_image(REQUEST)
    now = datetime.now(timezone(timedelta(hours=2)))
    costs = client.get_costs(now - timedelta(days=1), now + timedelta(hours=1))
    assert costs.total_cost == Decimal("0.04")
    assert sum(day.cost for day in costs.data) == Decimal("0.04")


@pytest.mark.parametrize(
    ("start", "end", "sentence"),
    [
        (datetime(2026, 1, 1), datetime(2026, 1, 2, tzinfo=UTC), "start must have a time zone"),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2), "end must have a time zone"),
        (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC), "must be after start"),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC), "by at most 180 days"),
    ],
    ids=["naive start", "naive end", "empty", "too long"],
)
def test_invalid_range_of_costs_is_rejected_without_a_request(start, end, sentence):
    with (
        GetimgClient("sk_x", base_url="http://127.0.0.1:1") as client,
        pytest.raises(errors.InvalidInputError, match=sentence),
    ):
        client.get_costs(start, end)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, errors.InvalidRequestError),
        (401, errors.AuthenticationError),
        (402, errors.InsufficientBalanceError),
        (403, errors.RequestRefusedError),
        (404, errors.RequestRefusedError),
        (413, errors.RequestRefusedError),
        (422, errors.ContentPolicyError),
        (429, errors.RateLimitError),
        (307, errors.RequestRefusedError),
        (302, errors.OutcomeUnknownError),
        (303, errors.OutcomeUnknownError),
        (405, errors.OutcomeUnknownError),
        (408, errors.OutcomeUnknownError),
        (409, errors.OutcomeUnknownError),
        (500, errors.OutcomeUnknownError),
        (503, errors.OutcomeUnknownError),
    ],
)
def test_each_error_status_raises_the_matching_error_after_one_post(simulator, client, status, expected):
    fault(
        simulator, "status", status=status, headers={"Location": "http://127.0.0.1:1/x?sig=secret"}, times=9
    )
    with pytest.raises(errors.GetimgError) as error:
        client.generate_image(REQUEST)
    assert type(error.value) is expected
    assert error.value.status == status
    assert error.value.billed == ("unknown" if expected is errors.OutcomeUnknownError else "no")
    assert str(error.value).endswith(errors.BILLED_SENTENCE[error.value.billed])
    assert "secret" not in str(error.value)
    assert len(simulator.ledger) == 1


def test_error_of_a_rejected_request_carries_the_code_param_and_message_of_the_api(client):
    with pytest.raises(errors.InvalidRequestError) as error:
        client.generate_image(REQUEST.model_copy(update={"resolution": "4K"}))
    assert error.value.code == "invalid_parameter"
    assert error.value.param == "resolution"
    assert str(error.value) == (
        "getimg.ai refused the request (400 invalid_parameter, resolution): "
        "Unsupported resolution '4K' for model 'seedream-5-lite'. See https://docs.getimg.ai/guides/errors#invalid_parameter. "
        "Nothing was billed."
    )


@pytest.mark.parametrize("kind", ["drop_before_billing", "drop_after_billing", "truncate", "html"])
def test_lost_or_unreadable_response_is_an_unknown_outcome_after_one_post(simulator, client, kind):
    fault(simulator, kind, times=9)
    with pytest.raises(errors.OutcomeUnknownError, match="It may have been billed"):
        client.generate_image(REQUEST)
    assert len(simulator.ledger) == 1


_WHOLE = json.dumps(
    {"id": "img_1", "status": "completed", "data": [{"url": "https://a.test/f?sig=secret"}]}
).encode()


@pytest.mark.parametrize(
    "response",
    [
        raw_servers.response(_WHOLE, length=len(_WHOLE) + 9),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(_WHOLE), _WHOLE),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nno trailer\r\n\r\n"
        % (len(_WHOLE), _WHOLE),
    ],
    ids=["length too large", "no last chunk", "bad trailer"],
)
def test_complete_response_is_read_although_its_connection_broke(response):
    with (
        raw_servers.RawServer(response) as server,
        GetimgClient("sk_test", base_url=server.url, timeout=20) as client,
    ):
        generation = client.generate_image(REQUEST)
    assert [file.url for file in generation.data] == ["https://a.test/f?sig=secret"]
    assert any("broke before" in oddity for oddity in generation.oddities)


@pytest.mark.parametrize("status", [303, 409, 500, 502])
def test_files_with_a_cost_are_returned_despite_an_unsuccessful_status(simulator, client, status):
    response = {"id": "img_1", "data": [{"url": "https://a.test/f"}], "usage": {"total_cost": 0.04}}
    fault(simulator, "status", status=status, body=json.dumps(response))
    generation = client.generate_image(REQUEST)
    assert (generation.id, generation.cost) == ("img_1", Decimal("0.04"))
    assert f"its HTTP status is {status}" in generation.oddities


def test_files_without_a_cost_are_kept_in_the_error_if_the_status_is_an_error(simulator, client):
    body = json.dumps({"id": "img_1", "data": [{"url": "https://a.test/f?sig=secret"}]})
    fault(simulator, "status", status=500, body=body)
    with pytest.raises(errors.OutcomeUnknownError) as error:
        client.generate_image(REQUEST)
    assert error.value.received == body
    assert "secret" not in str(error.value)


def test_truncated_response_is_kept_in_the_error_and_quoted_without_its_signature():
    with (
        raw_servers.RawServer(raw_servers.response(_WHOLE[:-2], length=len(_WHOLE))) as server,
        GetimgClient("sk_test", base_url=server.url, timeout=20) as client,
        pytest.raises(errors.OutcomeUnknownError, match=r"Received before that: .*img_1") as error,
    ):
        client.generate_image(REQUEST)
    assert "secret" not in str(error.value)
    assert error.value.received == _WHOLE[:-2].decode()


@pytest.mark.parametrize("kind", ["hang", "slow_first_byte", "slow_body"])
def test_generation_times_out_if_the_server_hangs_or_responds_slowly(simulator, kind):
    fault(simulator, kind, seconds=60)
    with (
        GetimgClient(simulator.api_key, base_url=simulator.url, timeout=1) as client,
        pytest.raises(errors.OutcomeUnknownError, match="did not finish the generation within 1 seconds"),
    ):
        client.generate_image(REQUEST)
    assert len(simulator.ledger) == 1


@pytest.mark.parametrize(
    ("body", "quoted"),
    [
        (
            '{"id": "img_1", "status": "completed", "data": [{"mime_type": "image/png"}]}',
            "it has no file with a URL",
        ),
        ('{"id": "img_1", "status": "completed"}', "it has no file with a URL"),
        ('{"id": "img_1", "status": "pending"}', "it has no file with a URL"),
        ('{"status": "completed", "files": [{"url": "https://x.test/y?sig=secret"}]}', r"\?\.\.\."),
        ("[]", "it is not a JSON object"),
        ("<html>gateway</html>", "it is not JSON.*<html>gateway</html>"),
    ],
    ids=["no url", "no data", "pending", "signed", "list", "html"],
)
def test_response_that_is_not_a_generation_is_quoted_without_secrets(simulator, client, body, quoted):
    fault(simulator, "status", status=200, body=body)
    with pytest.raises(errors.OutcomeUnknownError, match=quoted) as error:
        client.generate_image(REQUEST)
    assert "secret" not in str(error.value)
    assert simulator.api_key not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"usage": {}},
        {"usage": {"total_cost": None}},
        {"usage": {"total_cost": 0.04, "unit_price": "much"}},
        {"model": 7.5},
        {"status": None},
        {"id": 7},
        {"width": 12.5},
        {"height": "tall"},
        {"deletes_at": "2100-01-01T00:00:00"},
    ],
    ids=str,
)
@pytest.mark.parametrize("status", [200, 201])
def test_paid_response_is_accepted_despite_invalid_or_missing_metadata(simulator, client, change, status):
    media = {"url": "https://a.test/f?sig=x", "mime_type": "image/png", "deletes_at": "2100-01-01T00:00:00Z"}
    response = {"id": "img_1", "status": "completed", "model": "m", "usage": {"total_cost": 0.04}}
    response |= {name: value for name, value in change.items() if name in response}
    media |= {name: value for name, value in change.items() if name not in response}
    response["data"] = [media]
    if change == {"status": None}:
        del response["status"]
    fault(simulator, "status", status=status, body=json.dumps(response))
    generation = client.generate_image(REQUEST)
    assert generation.to_json() == response
    assert generation.data[0].deletes_at.year == 2100
    assert "sig=" not in repr(generation)


@pytest.mark.parametrize("status", [200, 400, 429])
def test_deeply_nested_json_raises_an_error_with_the_status_and_a_short_message(simulator, client, status):
    fault(simulator, "status", status=status, body="[" * 100_000)
    with pytest.raises(errors.GetimgError) as error:
        client.generate_image(REQUEST)
    assert error.value.status == status
    assert len(str(error.value)) < 1000


def test_long_response_produces_a_short_message_without_delay(simulator, client):
    fault(simulator, "status", status=500, body=json.dumps({"error": {"message": "a" * 5_000_000}}))
    started = time.monotonic()
    with pytest.raises(errors.OutcomeUnknownError) as error:
        client.generate_image(REQUEST)
    assert len(str(error.value)) < 1000
    # Not a benchmark: redaction took minutes when its pattern was quadratic.
    assert time.monotonic() - started < 20


def test_signature_in_json_with_escaped_slashes_is_redacted(simulator, client):
    fault(simulator, "status", status=200, body=r'{"url": "https:\/\/a.test\/f?sig=secret"}')
    with pytest.raises(errors.OutcomeUnknownError) as error:
        client.generate_image(REQUEST)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["https://a..b", "https://.example.test", f"https://{'x' * 64}.test", "https://a\tb"]
)
def test_base_url_with_an_unencodable_host_is_rejected(url):
    with pytest.raises(errors.ConnectionConfigError, match=r"^The base URL must start with"):
        GetimgClient("sk_x", base_url=url)


@pytest.mark.parametrize("proxy", ["ftp://proxy.test", "socks5://proxy.test"])
def test_error_for_an_unusable_proxy_in_the_environment_names_the_variable(monkeypatch, proxy):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(errors.ConnectionConfigError, match=r"^HTTPS_PROXY (must start|is a SOCKS)"):
        GetimgClient("sk_x")


@pytest.mark.parametrize("body", ["doc_url", "unreadable", "cut off"])
def test_api_key_echoed_by_the_api_is_in_no_error(simulator, client, body):
    url = f"https://docs.test/{simulator.api_key}"
    text = json.dumps({"error": {"message": "No.", "code": "no", "doc_url": url}})
    if body == "doc_url":
        fault(simulator, "status", status=403, body=text)
    elif body == "unreadable":
        fault(simulator, "status", status=200, body=text)
    else:
        fault(simulator, "response", body=f"{simulator.api_key} {text}", length=10_000)
    with pytest.raises(errors.GetimgError) as error:
        client.generate_image(REQUEST)
    shown = f"{error.value} {getattr(error.value, 'received', '')}"
    assert "***" in shown
    assert simulator.api_key not in shown


def test_dummy_key_that_is_part_of_a_paid_response_changes_nothing_in_it():
    with (
        raw_servers.RawServer(raw_servers.response(_WHOLE)) as server,
        GetimgClient("data", base_url=server.url) as client,
    ):
        assert client.generate_image(REQUEST).to_json() == Generation.from_json(json.loads(_WHOLE)).to_json()


def test_api_key_echoed_by_the_api_is_redacted(simulator, client):
    fault(
        simulator,
        "status",
        status=403,
        body=json.dumps({"error": {"message": f"Key {simulator.api_key} is banned", "code": "banned"}}),
    )
    with pytest.raises(errors.RequestRefusedError, match=r"Key \*\*\* is banned\."):
        client.generate_image(REQUEST)


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"Retry-After": "7"}, 7, 7),
        ({"Retry-After": "-7"}, 0, 0),
        ({"Retry-After": "soon"}, None, None),
        ({"Retry-After": "nan"}, None, None),
        ({"Retry-After": "1e300"}, None, None),
        ({"Retry-After": "999999"}, None, None),
        ({"Retry-After": "in 90 seconds"}, 85, 90),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0, 0),
        ({"X-RateLimit-Reset": "in 90 seconds", "X-RateLimit-Remaining": "0"}, 85, 90),
        ({"X-RateLimit-Reset": "in 90 seconds", "X-RateLimit-Remaining": "5"}, None, None),
        # Milliseconds, or seconds from now: the API documents neither, so both are ignored.
        ({"X-RateLimit-Reset": "4102444800000"}, None, None),
        ({"X-RateLimit-Reset": "60"}, None, None),
        ({"Retry-After": "7", "X-RateLimit-Reset": "in 90 seconds"}, 7, 7),
        # By the clock of the server, which is ahead of the worker's.
        ({"Retry-After": "in 90 seconds", "Date": "in 60 seconds"}, 29, 31),
        ({"X-RateLimit-Reset": "in 90 seconds", "Date": "in 60 seconds"}, 29, 31),
        ({}, None, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_wait_after_a_429_is_taken_only_from_plausible_headers(simulator, client, headers, low, high):
    moment = time.time() + 90
    if "Date" in headers:
        headers = {**headers, "Date": formatdate(moment - 30, usegmt=True)}
    if headers.get("Retry-After") == "in 90 seconds":
        headers = {**headers, "Retry-After": formatdate(moment, usegmt=True)}
    if headers.get("X-RateLimit-Reset") == "in 90 seconds":
        headers = {**headers, "X-RateLimit-Reset": str(int(moment))}
    fault(simulator, "status", status=429, headers=headers)
    with pytest.raises(errors.RateLimitError) as error:
        client.generate_image(REQUEST)
    wait = error.value.retry_after
    assert wait is None if low is None else low <= wait <= high


def test_refused_connection_is_reported_as_not_billed():
    with (
        GetimgClient("sk_x", base_url="http://127.0.0.1:1") as client,
        pytest.raises(
            errors.NoConnectionError, match=r"No connection to http://127.0.0.1:1 .*Nothing was billed"
        ),
    ):
        client.generate_image(REQUEST)


def test_proxy_that_rejects_connect_raises_no_connection_error(simulator):
    with (
        GetimgClient("sk_x", base_url="https://api.test", proxy=simulator.url) as client,
        pytest.raises(errors.NoConnectionError),
    ):
        client.generate_image(REQUEST)
    assert not simulator.ledger


def test_a_request_over_25_mib_is_not_sent(simulator, client):
    reference = {"url": "data:image/png;base64," + "A" * (9 * 1024 * 1024), "role": "reference_image"}
    request = ImageRequest.checked(model="m", prompt="p", images=[reference] * 3)
    with pytest.raises(errors.InvalidInputError, match=r"at most 26214400 bytes \(25 MiB\), got 2831\d{4}\."):
        client.generate_image(request)
    assert not simulator.ledger


@pytest.mark.parametrize("kind", ["drop_after_billing", "html", "truncate"])
def test_failed_free_call_is_reported_as_not_billed(simulator, client, kind):
    fault(simulator, kind, on="models")
    with pytest.raises(errors.UnavailableError, match=r"Nothing was billed\.$"):
        client.list_models()


def test_wrong_key_is_reported_with_the_api_error_code_and_not_quoted(simulator):
    with (
        GetimgClient("sk_wrong", base_url=simulator.url) as client,
        pytest.raises(errors.AuthenticationError, match="401 invalid_api_key") as error,
    ):
        client.list_models()
    assert "sk_wrong" not in str(error.value)


def test_abort_from_another_thread_ends_a_request_in_flight(simulator):
    fault(simulator, "hang", seconds=60)
    client = GetimgClient(simulator.api_key, base_url=simulator.url, timeout=60)
    caught: list[Exception] = []

    def generate() -> None:
        try:
            client.generate_image(REQUEST)
        except errors.GetimgError as error:
            caught.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    arrived = threading.Event()
    while not simulator.ledger:
        assert not arrived.wait(0.02)
    assert client.abort() == 1
    thread.join(10)
    client.close()
    assert not thread.is_alive()
    assert type(caught[0]) is errors.OutcomeUnknownError


def test_api_key_is_not_in_the_repr_of_the_client_or_its_headers(simulator, client):
    assert simulator.api_key not in repr(client)
    assert simulator.api_key not in repr(client.__dict__["_http"].headers)


def test_each_request_opens_its_own_connection_even_across_threads(simulator, client):
    # The server offers to keep the connection alive. A request on a connection that another thread is about to close
    # would be cut off with it, and its outcome would be unknown.
    request = client._http.build_request("GET", "/v2/models")
    assert request.headers["connection"] == "close"
    peers: list[int] = []

    def ask() -> None:
        with client._http.stream("GET", "/v2/models") as response:
            sock = response.extensions["network_stream"].get_extra_info("socket")
            peers.append(sock.getsockname()[1])
            response.read()

    threads = [threading.Thread(target=lambda: [ask() for _ in range(5)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(peers)) == len(peers) == 40


def test_generation_reports_the_remaining_rate_limit_if_the_api_sends_it(simulator, client):
    request = ImageRequest.checked(model="seedream-5-lite", prompt="A red fox")
    assert client.generate_image(request).rate_limit is None
    simulator.settings(rpm=10)
    limit = client.generate_image(request).rate_limit
    assert limit.remaining == 9
    assert 0 < limit.resets_in <= 62
