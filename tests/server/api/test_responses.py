# SPDX-License-Identifier: Apache-2.0
"""Odd headers, bodies and messages over real sockets: none loses a paid image, and no error shows control characters."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
import zlib

import pytest

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.printable import printable
from airflow_provider_getimg.api.requests import ImageRequest
from tests.support.raw_servers import RawServer, response

REQUEST = ImageRequest(model="m", prompt="p")
PAID = json.dumps(
    {
        "id": "req-1",
        "status": "completed",
        "data": [{"url": "https://a.test/f?sig=x"}],
        "usage": {"total_cost": 0.04},
    }
).encode()


def generate(raw: bytes):
    with RawServer(raw) as server, GetimgClient("sk_secret", base_url=server.url, timeout=10) as client:
        return client.generate_image(REQUEST)


def refused(raw: bytes) -> errors.GetimgError:
    with pytest.raises(errors.GetimgError) as error:
        generate(raw)
    return error.value


DATES = [
    "Mon, 01 Jan 2026 00:00:00 +9999999999999",
    "Mon, 01 Jan 0001 00:00:00 +2300",
    "Fri, 31 Dec 9999 23:59:59 -2300",
    "Mon, 99 Foo 2026 00:00:00 GMT",
    "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    "Mon, 01 Jan 2026 00:00:00 -0000",
    "01",
    ",",
    "",
    "\xff\xfe",
]
NUMBERS = ["9e11", "1e400", "-1e400", "nan", "-5", "1" * 400, "0x10", "１", "", "\xff", "1, 1", "1_0"]


@pytest.mark.parametrize("date", DATES, ids=repr)
def test_unusual_date_header_does_not_lose_a_paid_image(date):
    headers = [f"Date: {date}".encode(), b"X-RateLimit-Remaining: 1", b"X-RateLimit-Reset: 9e11"]
    assert generate(response(PAID, *headers)).id == "req-1"


@pytest.mark.parametrize("reset", NUMBERS, ids=lambda text: repr(text)[:9])
@pytest.mark.parametrize("remaining", NUMBERS, ids=lambda text: repr(text)[:9])
def test_unusual_rate_limit_header_does_not_lose_a_paid_image(served, remaining, reset):
    server, client = served
    server.response = response(
        PAID, f"X-RateLimit-Remaining: {remaining}".encode(), f"X-RateLimit-Reset: {reset}".encode()
    )
    assert client.generate_image(REQUEST).id == "req-1"


@pytest.fixture(scope="module")
def served():
    with RawServer(b"") as server, GetimgClient("sk_x", base_url=server.url, timeout=10) as client:
        yield server, client


@pytest.mark.parametrize(
    "header", [*DATES, *NUMBERS, str(10**6), "Mon, 01 Jan 2096 00:00:00"], ids=lambda text: repr(text)[:30]
)
def test_429_with_any_retry_after_is_not_billed_and_waits_at_most_six_hours(served, header):
    server, client = served
    server.response = response(b"{}", f"Retry-After: {header}".encode(), status="429 Too Many Requests")
    with pytest.raises(errors.RateLimitError) as error:
        client.generate_image(REQUEST)
    assert error.value.billed == "no"
    assert error.value.retry_after is None or 0 <= error.value.retry_after <= 6 * 3600


def test_retry_after_date_without_a_time_zone_is_read_as_utc(served):
    server, client = served
    moment = time.strftime("%a, %d %b %Y %H:%M:%S", time.gmtime(time.time() + 60))
    server.response = response(b"", f"Retry-After: {moment}", status="429 Too Many Requests")
    with pytest.raises(errors.RateLimitError) as error:
        client.generate_image(REQUEST)
    assert 50 < error.value.retry_after <= 60


@pytest.mark.parametrize("status", [301, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "http://[",
        "http://h:port/",
        "https://a..b/",
        "http://h:99999999/",
        "//[::1",
        "x" * 70_000,
        "http://a\xff",
        None,
    ],
    ids=lambda text: repr(text)[:12],
)
def test_redirect_of_a_generation_is_reported_as_not_billed_for_any_location(status, location):
    headers = [] if location is None else [f"Location: {location}".encode("latin-1")]
    error = refused(response(b"", *headers, status=f"{status} Moved"))
    assert type(error) is errors.RequestRefusedError
    assert error.billed == "no"
    assert str(error).startswith(f"The request was redirected ({status}, to ")
    assert len(str(error)) < 500


def test_redirect_target_is_shown_without_secrets():
    location = "https://user:pw@b.test/v2?sig=secret&key=sk_secret"
    error = refused(response(b"", f"Location: {location}", status="308 Permanent Redirect"))
    assert "(308, to https://***@b.test/v2)" in str(error)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (None, PAID),
        ("", PAID),
        ("identity", PAID),
        ("Identity", PAID),
        ("aws-chunked", PAID),
        ("utf-8", PAID),
        ("binary", PAID),
        ("br", PAID),
        ("gzip", PAID),
        ("deflate", PAID),
        ("gzip, gzip, gzip", PAID),
        ("gzip", gzip.compress(PAID)),
        ("x-gzip", gzip.compress(PAID)),
        ("GZIP, aws-chunked", gzip.compress(PAID)),
        (None, gzip.compress(PAID)),
        ("gzip, gzip", gzip.compress(gzip.compress(PAID))),
        ("deflate", zlib.compress(PAID)),
        ("deflate", zlib.compress(PAID, wbits=-15)),
        ("deflate, gzip", gzip.compress(zlib.compress(PAID))),
        # Cut off within the checksum, after the whole response.
        ("gzip", gzip.compress(PAID)[:-3]),
        ("gzip", gzip.compress(PAID)[:-8]),
    ],
    ids=lambda value: (
        {PAID: "as it is"}.get(value, "compressed") if isinstance(value, bytes) else repr(value)
    ),
)
def test_paid_response_is_read_whatever_its_content_encoding(encoding, body):
    headers = [] if encoding is None else [f"Content-Encoding: {encoding}"]
    assert generate(response(body, *headers)).id == "req-1"


def test_requests_accept_only_the_identity_encoding(served):
    server, client = served
    server.response = response(PAID)
    client.generate_image(REQUEST)
    assert "accept-encoding: identity" in server.heads[-1].lower()


def bomb(size: int, layers: int) -> bytes:
    body = b" " * size
    for _ in range(layers):
        body = gzip.compress(body)
    return body


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", bomb(64 << 20, 1)),
        ("gzip, gzip", bomb(256 << 20, 2)),
        ("deflate", zlib.compress(b" " * (64 << 20))),
        ("identity", b" " * (17 << 20)),
    ],
    ids=["gzip", "gzip twice", "deflate", "plain"],
)
def test_response_over_16_mib_once_decoded_is_rejected_with_bounded_memory(encoding, body):
    with RawServer(response(body, f"Content-Encoding: {encoding}")) as server:
        tracemalloc.start()
        with (
            GetimgClient("sk_x", base_url=server.url, timeout=30) as client,
            pytest.raises(errors.OutcomeUnknownError, match="returned 200 with more than 16777216 bytes"),
        ):
            client.generate_image(REQUEST)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 100 << 20


@pytest.mark.parametrize(
    "body",
    [gzip.compress(PAID)[:-20], gzip.compress(PAID, 0)[:40] + b"\xff" * 99],
    ids=["cut off", "corrupt"],
)
def test_truncated_or_corrupt_compression_is_an_unknown_outcome(body):
    assert type(refused(response(body, "Content-Encoding: gzip"))) is errors.OutcomeUnknownError


def test_response_with_three_layers_of_compression_is_an_unknown_outcome():
    body = gzip.compress(gzip.compress(gzip.compress(PAID)))
    error = refused(response(body, "Content-Encoding: gzip, gzip, gzip"))
    assert type(error) is errors.OutcomeUnknownError


def error_body(**fields: object) -> bytes:
    return json.dumps({"error": {"message": "No.", **fields}}).encode()


def test_control_characters_from_the_api_are_removed_from_the_error():
    body = error_body(
        message="a\x1b[31m\r\nb\x00\u202ec\u2066d\u2028e\ud800 sk_secret", code="c\x07\ne", param="p\u202eq"
    )
    error = refused(response(body, status="400 Bad Request"))
    assert str(error) == (
        "getimg.ai refused the request (400 c e, pq): a [31m b cd e ***. Nothing was billed."
    )
    assert (error.code, error.param, error.detail) == ("c e", "pq", "a [31m b cd e ***")


@pytest.mark.parametrize("text", ["a\x1bb", "a\nb", "a\u202eb", "a\u200bb", "a\ud800b", "a\x85b"], ids=repr)
def test_printable_removes_control_characters_and_keeps_the_rest(text):
    assert printable(text) in ("ab", "a b")
    assert printable("Füchse 狐 🦊 (1)") == "Füchse 狐 🦊 (1)"


@pytest.mark.parametrize(
    ("status", "code", "where"),
    [
        ("400 Bad Request", "400", "(400)"),
        ("400 Bad Request", "bad", "(400 bad)"),
        ("429 Slow", "429", "(429)"),
    ],
)
def test_error_code_equal_to_the_status_is_not_repeated(status, code, where):
    assert f"{where}: No." in str(refused(response(error_body(code=code), status=status)))


def test_a_response_without_a_body_is_described_by_its_status():
    assert str(refused(response(status="304 Not Modified"))) == (
        "getimg.ai failed (304): Not Modified. It may have been billed."
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://docs.getimg.ai/errors/x", "https://docs.getimg.ai/errors/x"),
        ("https://docs.getimg.ai/errors?key=secret#part", "https://docs.getimg.ai/errors#part"),
        ("https://docs.getimg.ai/errors#key=secret", "https://docs.getimg.ai/errors"),
        ("http://docs.getimg.ai/errors", None),
        ("https://user:secret@docs.getimg.ai/", None),
        ("javascript:alert(1)", None),
        ("https://[", None),
        ("https://docs.getimg.ai/\u202egnp", None),
        ("https://docs.getimg.ai/a b", None),
        ("https://docs.getimg.ai/" + "a" * 300, None),
        (7, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_documentation_url_of_an_error_is_shown_only_if_it_is_safe(url, shown):
    error = refused(response(error_body(doc_url=url), status="422 Unprocessable"))
    assert error.doc_url == shown
    assert str(error) == (
        f"getimg.ai refused the request (422): No.{f' See {shown}.' if shown else ''} Nothing was billed."
    )


def test_insufficient_balance_error_explains_that_credits_are_prepaid():
    error = refused(response(error_body(code="quota_exceeded"), status="402 Payment Required"))
    assert str(error) == (
        "getimg.ai refused the request (402 quota_exceeded): No. API credits are prepaid and separate from the "
        "consumer plans. Nothing was billed."
    )


def test_client_that_failed_to_initialize_has_a_repr():
    half_made = GetimgClient.__new__(GetimgClient)
    assert repr(half_made) == "<GetimgClient (not set up)>"
    with pytest.raises(errors.ConnectionConfigError):
        half_made.__init__("sk_x", base_url="nowhere")
    assert "nowhere" not in repr(half_made)
