# SPDX-License-Identifier: Apache-2.0
"""JSON Lines files on a real S3 server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_getimg.api.errors import InvalidInputError, UnavailableError
from airflow_provider_getimg.batch import requests_file
from airflow_provider_getimg.batch.requests_file import LINE_MAX_BYTES, MAX_REQUESTS, listed

if TYPE_CHECKING:
    from collections.abc import Callable


class File:
    """A requests file in a bucket, and the faults found in it."""

    def __init__(self, client: Any, bucket: str) -> None:
        self.client = client
        self.uri = f"s3://{bucket}/in.jsonl"
        self.faults: list[str] = []

    def read(self, content: bytes) -> list[tuple[str, Any]]:
        bucket, _, key = self.uri.removeprefix("s3://").partition("/")
        self.client.put_object(Bucket=bucket, Key=key, Body=content)
        return [
            (where.removeprefix(f"{self.uri} "), request)
            for where, request in listed(self.uri, lambda: self.client, self.faults.append)
        ]


@pytest.fixture
def file(seaweedfs, bucket) -> File:
    return File(seaweedfs.client(), bucket)


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "a"}\n\n{"prompt": "\xc3\xa9"}\n',
        b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  {"prompt": "\xc3\xa9"}',
    ],
    ids=["Unix", "Windows"],
)
def test_each_line_that_is_not_blank_is_a_request(file, content):
    assert file.read(content) == [("line 1", {"prompt": "a"}), ("line 3", {"prompt": "é"})]
    assert file.faults == []


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf"], ids=["nothing", "a line break", "a mark"])
def test_empty_file_has_no_requests(file, content):
    assert file.read(content) == []


def test_line_of_26_mib_is_accepted_and_a_longer_one_is_rejected(file):
    long = b'{"prompt": "' + b"x" * (LINE_MAX_BYTES - 15) + b'"}'
    assert len(file.read(long + b"\n{}")) == 2
    with pytest.raises(
        InvalidInputError, match=r"in\.jsonl line 2 must be at most 27262976 bytes, got more\."
    ):
        file.read(b"{}\n" + long + b"  \n{}")


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        (b"not json", "'not json'"),
        (b'["a"]', "'[\"a\"]'"),
        (b"7", "'7'"),
        (b'{"prompt": "\xff"}', '\'{"prompt": "\N{REPLACEMENT CHARACTER}"}\''),
        (b"[" * 100_000, f"'{'[' * 59}..."),
        (b'{"images": ["https://a.test/b?sig=secret"', '\'{"images": ["https://a.test/b?..."\''),
    ],
    ids=["text", "list", "number", "encoding", "depth", "signature"],
)
def test_line_that_is_not_a_json_object_is_reported_by_number_and_skipped(file, line, quoted):
    assert file.read(b"{}\n" + line + b"\n{}\n") == [("line 1", {}), ("line 3", {})]
    assert file.faults == [
        f"{file.uri} line 2 must be a JSON object with at least model and prompt, got {quoted}."
    ]


@pytest.mark.parametrize("line", [b"{}", b"", b"[]"], ids=["empty", "blank", "no request"])
def test_file_with_too_many_lines_is_rejected_quickly(file, line):
    content = (line + b"\n") * 700_000
    began = time.process_time()
    with pytest.raises(
        InvalidInputError, match=rf"in\.jsonl\) must have at most {MAX_REQUESTS} lines, got more\."
    ):
        file.read(content)
    assert time.process_time() - began < 2


def test_file_over_the_size_limit_is_rejected(file, monkeypatch):
    monkeypatch.setattr(requests_file, "REQUESTS_FILE_MAX_BYTES", 10)
    with pytest.raises(
        InvalidInputError, match=r"in\.jsonl\) must be at most 10 bytes \(256 MiB\), got 11\."
    ):
        file.read(b"not json at")


@pytest.mark.parametrize("uri", ["s3://", "s3://bucket", "s3://bucket/"])
def test_uri_without_a_bucket_or_key_is_rejected_before_s3_is_contacted(uri):
    with pytest.raises(InvalidInputError, match=rf"^requests must be s3://bucket/key, got '{uri}'\."):
        list(listed(uri, lambda: pytest.fail("S3 was asked"), []))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "uri", ["s3://{bucket}/there-is-none", "s3://no--such--bucket/k", "s3://NO/k", "s3://a b/k"]
)
def test_missing_file_or_bucket_is_rejected(seaweedfs, bucket, uri):
    with pytest.raises(InvalidInputError, match=r"\) can't be read from S3: .*[^.]\. Nothing was billed\.$"):
        list(listed(uri.format(bucket=bucket), seaweedfs.client, pytest.fail))


def test_unreachable_store_raises_an_error_that_is_retried(file, monkeypatch):
    def broken(name: str, uri: str, opened: Any, add_fault: Callable[[str], None]) -> list[Any]:
        from botocore.exceptions import ReadTimeoutError

        raise ReadTimeoutError(endpoint_url="http://a.test")

    monkeypatch.setattr(requests_file, "_lines", broken)
    with pytest.raises(UnavailableError, match="can't be read from S3: Read timeout on endpoint URL"):
        file.read(b"{}")
