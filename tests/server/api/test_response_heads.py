# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.api.response_heads import ResponseHeads, sanitized_head
from tests.support.raw_servers import RawServer

BODY = json.dumps({"id": "img_1", "status": "completed", "data": [{"url": "https://a.test/f"}]}).encode()
SIZE = f"Content-Length: {len(BODY)}".encode()
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([b"X Foo: a", SIZE], BODY),
        ([b"X-Foo : a", SIZE], BODY),
        ([b"Nonsense", b" that goes on", SIZE], BODY),
        ([b": a", SIZE], BODY),
        ([b"X-F\xf6\xf6: a", SIZE], BODY),
        ([b"X-Foo: a\x00b", SIZE], BODY),
        ([b"X-Foo: " + b"a" * 200_000, SIZE], BODY),
        ([b"Content-Length:"], BODY),
        ([b"Content-Length: many"], BODY),
        ([b"Content-Length: -1"], BODY),
        ([SIZE, b"Content-Length: 7"], BODY),
        ([b"Transfer-Encoding: identity", SIZE], BODY),
        ([b"Transfer-Encoding: Chunked", b"Transfer-Encoding: chunked"], CHUNKED),
        ([b"Transfer-Encoding: gzip, chunked"], CHUNKED),
    ],
    ids=lambda part: repr(b"; ".join(part)[:40]) if isinstance(part, list) else "",
)
@pytest.mark.parametrize("before", [b"", b"\r\n", b"HTTP/1.1 103 Early Hints\r\nX Y: z\r\n\r\n"], ids=repr)
def test_malformed_header_does_not_lose_a_paid_response(before, headers, body):
    response = before + b"\r\n".join([b"HTTP/1.1 200 OK", *headers, b"Connection: close", b"", body])
    with RawServer(response) as server, GetimgClient("sk_test", base_url=server.url, timeout=20) as client:
        generation = client.generate_image(ImageRequest(model="m", prompt="A red fox"))
    assert [file.url for file in generation.data] == ["https://a.test/f"]


def test_sanitized_head_keeps_valid_headers_and_joins_folded_lines():
    head = b"HTTP/1.1 200 OK\r\nServer: x\r\nX-Long: a\r\n b\r\nX-Empty:\r\nContent-Length: 0020"
    assert sanitized_head(head).split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"Server: x",
        b"X-Long: a b",
        b"X-Empty: ",
        b"Content-Length: 0020",
        b"",
        b"",
    ]


@pytest.mark.parametrize("step", [1, 2, 7, 100_000])
def test_response_is_read_the_same_in_chunks_of_any_size(step):
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n"
    body = b"HTTP/1.1 is a protocol\r\nA B: c\r\n\r\n"
    pieces = [(head + body)[start : start + step] for start in range(0, len(head + body), step)]
    heads = ResponseHeads(lambda *_: pieces.pop(0) if pieces else b"")
    assert b"".join(iter(lambda: heads.read(9), b"")) == head + body


def test_bytes_before_a_response_pass_through_unchanged():
    pieces = [b"\x05\x00", b"\x05\x00\x00\x01", b"HTTP/1.1 200 OK\r\nA B: c\r\n\r\nbody"]
    heads = ResponseHeads(lambda *_: pieces.pop(0))
    assert [heads.read(9) for _ in range(3)] == [
        b"\x05\x00",
        b"\x05\x00\x00\x01",
        b"HTTP/1.1 200 OK\r\n\r\nbody",
    ]
