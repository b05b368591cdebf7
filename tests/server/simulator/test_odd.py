# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import io
import json
import math
import xml.etree.ElementTree as ElementTree
import zipfile

import httpx
import pytest
from PIL import Image

GOOD = {"$file": 0}


def headers_of(head):
    lines = [line.partition(":") for line in head.decode().splitlines()[1:]]
    return [(name.lower(), value.strip()) for name, _, value in lines]


RESPONSES = {
    "an error beside it": ({"data": [GOOD, {"error": {"code": "x"}}]}, lambda a: a["data"][1] == {"error": {"code": "x"}}),
    "null beside it": ({"data": [GOOD, None]}, lambda a: a["data"][1] is None),
    "no URL beside it": ({"data": [GOOD, {"url": ""}]}, lambda a: a["data"][1] == {"url": ""}),
    "a null field": ({"data": [{**GOOD, "mime_type": None}]}, lambda a: a["data"][0]["mime_type"] is None),
    "a date": ({"data": [{**GOOD, "deletes_at": 1e9}]}, lambda a: a["data"][0]["deletes_at"] == 1e9),
    "a missing field": (
        {"data": [{**GOOD, "$omit": ["mime_type", "nothing"]}]},
        lambda a: list(a["data"][0]) == ["url", "deletes_at", "width", "height"],
    ),
    "a status": ({"merge": {"status": "succeeded"}}, lambda a: a["status"] == "succeeded"),
    "a number": ({"merge": {"usage": {"total_cost": math.nan}}}, lambda a: math.isnan(a["usage"]["total_cost"])),
    "a nested field": ({"merge": {"usage": {"quantity": None}}}, lambda a: len(a["usage"]) == 3),
    "no usage": ({"merge": {"usage": None}}, lambda a: "usage" not in a),
    "an id": ({"merge": {"id": "a/\x1b[2J\n"}}, lambda a: a["id"] == "a/\x1b[2J\n"),
    "text": ({"body": '{"x": NaN, "data": [$FILE]}'}, lambda a: math.isnan(a["x"])),
    "text around": ({"body": " $RESPONSE\n", "status": 201}, lambda a: a["status"] == "completed"),
    "gzip": ({"encoding": "gzip"}, lambda a: a["status"] == "completed"),
    "gzip twice": ({"encoding": "gzip, gzip"}, lambda a: a["status"] == "completed"),
    "chunked": ({"length": "chunked"}, lambda a: a["status"] == "completed"),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "is_so"), RESPONSES.values(), ids=RESPONSES.keys())
def test_odd_response_is_billed_and_its_file_can_be_downloaded(simulator, fault, is_so):
    content = json.dumps({"faults": [{"on": "image", "kind": "response", **fault}]})
    simulator.http.post(
        "/_simulator/faults", content=content, headers={"Content-Type": "application/json"}
    ).raise_for_status()
    response = simulator.post()
    assert response.status_code == fault.get("status", 200)
    assert is_so(response.json())
    assert simulator.keyless.get(response.json()["data"][0]["url"]).headers["content-type"] == "image/jpeg"
    assert simulator.last() | {"billed": 0.04, "outcome": "delivered"} == simulator.last()
    assert simulator.last()["status"] == response.status_code


def test_response_can_hold_several_valid_entries_of_the_same_image(simulator):
    simulator.fault("image", "response", data=[GOOD, None, {"$file": 7}])
    first, _, second = simulator.post().json()["data"]
    assert first["url"] != second["url"]
    assert simulator.keyless.get(first["url"]).content == simulator.keyless.get(second["url"]).content


def test_response_body_can_be_invalid_json(simulator):
    simulator.fault("image", "response", body="$RESPONSE]")
    text = simulator.post().text
    assert json.loads(text[:-1])["id"] == simulator.last()["id"]
    assert text.endswith("}]")


def test_response_headers_can_be_replaced_added_and_removed(simulator):
    simulator.set(rpm=10)
    date = "Mon, 01 Jan 2026 00:00:00 +9999999999999"
    odd = {"date": date, "X-RateLimit-Reset": "9e11", "x-ratelimit-limit": None, "X-Odd": 1}
    simulator.fault("image", "response", headers=odd)
    body = {"model": "seedream-5-lite", "prompt": "a lake"}
    headers = headers_of(simulator.raw("POST", f"{simulator.url}/v2/images/generations", body)[0])
    assert sorted(value for name, value in headers if name == "date") == [date]
    assert dict(headers) | {"x-ratelimit-reset": "9e11", "x-ratelimit-remaining": "9", "x-odd": "1"} == dict(
        headers
    )
    assert "x-ratelimit-limit" not in dict(headers)


def test_response_without_a_fault_has_exactly_one_date_header(simulator):
    for url in (simulator.url_of(), f"{simulator.url}/v2/models", f"{simulator.url}/nowhere"):
        names = [name for name, _ in headers_of(simulator.raw("GET", url)[0])]
        assert names.count("date") == 1


def test_error_response_can_carry_any_error_object(simulator):
    error = {"message": "No.", "type": "odd_error", "code": "x", "doc_url": "https://docs.example/errors#x"}
    simulator.fault("image", "status", status=400, body={"error": error})
    assert simulator.post().json() == {"error": error}


def test_redirect_can_have_an_invalid_location_and_is_not_billed(simulator):
    simulator.fault("image", "status", status=307, headers={"Location": "http://[::1"})
    body = {"model": "seedream-5-lite", "prompt": "a lake"}
    head, _ = simulator.raw("POST", f"{simulator.url}/v2/images/generations", body)
    assert dict(headers_of(head))["location"] == "http://[::1"
    assert simulator.last()["billed"] == 0


@pytest.mark.parametrize("status", [200, 203, 206, 401, 403, 404, 410, 500])
def test_file_is_sent_with_the_given_status_the_given_number_of_times(simulator, status):
    url = simulator.url_of()
    whole = simulator.keyless.get(url).content
    simulator.fault("download", "file", status=status, times=2)
    assert simulator.keyless.head(url).status_code == 200
    for expected in (status, status, 200):
        response = simulator.keyless.get(url)
        assert (response.status_code, response.content) == (expected, whole)
        partial = f"bytes 0-{len(whole) - 1}/{len(whole)}" if expected == 206 else None
        assert response.headers.get("content-range") == partial


KINDS = {
    **{name: (lambda body, name=name: Image.open(io.BytesIO(body)).format == name.upper())
       for name in ("png", "jpeg", "webp", "gif")},
    "avif": lambda body: body[4:12] == b"ftypavif",
    "svg": lambda body: ElementTree.fromstring(body).tag.endswith("svg"),
    "html": lambda body: body.startswith(b"<!DOCTYPE html>"),
    "json": lambda body: json.loads(body),
    "text": lambda body: body.isascii(),
    "nothing": lambda body: body == b"",
    "zip": lambda body: zipfile.ZipFile(io.BytesIO(body)).testzip() is None,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "is_so"), KINDS.items(), ids=KINDS.keys())
def test_file_can_contain_something_other_than_its_content_type_announces(simulator, kind, is_so):
    url = simulator.url_of(output_format="webp")
    simulator.fault("download", "file", bytes=kind)
    response = simulator.keyless.get(url)
    assert response.headers["content-type"] == "image/webp"
    assert is_so(response.content)


def test_file_in_another_format_keeps_its_dimensions_and_can_omit_its_content_type(simulator):
    url = simulator.url_of(aspect_ratio="3:2")
    simulator.fault("download", "file", bytes="gif", headers={"Content-Type": None})
    response = simulator.keyless.get(url)
    assert "content-type" not in response.headers
    with (
        Image.open(io.BytesIO(response.content)) as drawn,
        Image.open(io.BytesIO(simulator.keyless.get(url).content)) as good,
    ):
        assert drawn.size == good.size


LENGTHS = {
    "padded": ("padded", lambda headers, size: headers["content-length"] == f"0{size}"),
    "chunked": ("chunked", lambda headers, size: headers["transfer-encoding"] == "chunked"),
    "none": ("none", lambda headers, size: not {"content-length", "transfer-encoding"} & set(headers)),
    "right": ("right", lambda headers, size: headers["content-length"] == str(size)),
}


@pytest.mark.parametrize(("length", "is_so"), LENGTHS.values(), ids=LENGTHS.keys())
def test_length_is_announced_as_the_fault_specifies(simulator, length, is_so):
    url = simulator.url_of()
    whole = simulator.keyless.get(url).content
    simulator.fault("download", "file", length=length)
    head, body = simulator.raw("GET", url)
    assert is_so(dict(headers_of(head)), len(whole))
    assert body == whole or length == "chunked"
    # On a kept-alive connection too, where the next response must be normal.
    simulator.fault("download", "file", length=length)
    assert [simulator.keyless.get(url).content for _ in range(2)] == [whole, whole]
    assert simulator.keyless.get(url).headers["content-length"] == str(len(whole))


def test_announced_length_can_be_too_short_or_too_long(simulator):
    url = simulator.url_of()
    whole = simulator.keyless.get(url).content
    simulator.fault("download", "file", length=1000)
    assert simulator.raw("GET", url)[1] == whole[:1000]
    simulator.fault("download", "file", length=len(whole) + 1)
    with pytest.raises(httpx.RemoteProtocolError):
        simulator.keyless.get(url)
    simulator.fault("image", "response", length=0)
    assert simulator.post().content == b""
    assert simulator.last()["billed"] == 0.04


@pytest.mark.parametrize("coding", ["aws-chunked", "Identity", "binary", ""])
def test_content_encoding_can_be_announced_without_encoding_the_body(simulator, coding):
    url = simulator.url_of()
    whole = simulator.keyless.get(url).content
    simulator.fault("download", "file", headers={"Content-Encoding": coding})
    head, body = simulator.raw("GET", url)
    assert dict(headers_of(head))["content-encoding"] == coding
    assert body == whole


def test_gzip_encoding_compresses_the_file(simulator):
    simulator.set(file_size=1_000_000)
    url = simulator.url_of()
    whole = simulator.keyless.get(url).content
    simulator.fault("download", "file", encoding="gzip")
    head, body = simulator.raw("GET", url)
    assert dict(headers_of(head))["content-encoding"] == "gzip"
    assert (gzip.decompress(body), len(whole)) == (whole, 1_000_000)


@pytest.mark.parametrize("hops", [1, 5, 6])
def test_file_is_sent_after_the_given_number_of_redirects(simulator, hops):
    url = simulator.url_of()
    simulator.fault("download", "file", redirects=hops, status=203, bytes="png")
    with httpx.Client(trust_env=False, follow_redirects=True) as client:
        response = client.get(url)
        assert [hop.status_code for hop in response.history] == [302] * hops
        assert (response.status_code, response.content[:4]) == (203, b"\x89PNG")
        assert client.get(url).history == []


REFUSED = {
    "a response on download": ({"on": "download", "kind": "response"}, "'on' must be 'image', 'video' or 'video_status', got 'download'."),
    "a file on image": ({"on": "image", "kind": "file"}, "'on' must be 'download', got 'image'."),
    "a response that is none": ({"on": "image", "kind": "response", "status": 302}, "'status' must be less than"),
    "no body": ({"on": "download", "kind": "file", "status": 304}, "the status 304 has no body."),
    "a patch": ({"on": "image", "kind": "response", "merge": []}, "'merge' must be a valid dictionary, got []."),
    "data": ({"on": "image", "kind": "response", "data": {}}, "'data' must be a valid list, got {}."),
    "an entry": ({"on": "image", "kind": "response", "data": [{"$file": "0"}]}, "'$file' must be a number from 0 to 99"),
    "omitted": (
        {"on": "image", "kind": "response", "data": [{"$file": 0, "$omit": "url"}]},
        "'$omit' must be a list of fields, got 'url'.",
    ),
    "bytes": ({"on": "download", "kind": "file", "bytes": "bmp"}, "'bytes' must be 'png', 'jpeg', "),
    "length": ({"on": "download", "kind": "file", "length": -1}, "'length' must be 'right', 'padded', 'none' or 'chunked' or greater"),
    "encoding": ({"on": "download", "kind": "file", "encoding": "br"}, "'encoding' must be 'identity', 'gzip' or"),
    "a length as a header": (
        {"on": "download", "kind": "file", "headers": {"Content-Length": 5}},
        "can't set the header 'Content-Length': 'length' and",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_invalid_odd_fault_is_rejected_with_the_reason(simulator, fault, sentence):
    response = simulator.http.post("/_simulator/faults", json={"faults": [fault]})
    assert response.status_code == 400
    assert sentence in response.json()["error"]["message"]
    assert simulator.http.get("/_simulator/faults").json() == {"faults": []}
