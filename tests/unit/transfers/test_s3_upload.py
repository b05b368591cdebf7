# SPDX-License-Identifier: Apache-2.0
"""Uploads against moto, in process; ``tests/integration`` repeats what moto can't show on a real server."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto import mock_aws

from airflow_provider_getimg.api.errors import InvalidInputError, ObjectStoreError
from airflow_provider_getimg.transfers.plan import plan
from airflow_provider_getimg.transfers.s3_store import S3Store
from airflow_provider_getimg.transfers.s3_upload import PART_BYTES, OccupiedKeyError, S3Upload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client


MEDIA = {"url": "https://api.test/f", "mime_type": "image/png", "deletes_at": "2100-01-01T00:00:00Z"}
ANSWER = {"id": "img_1", "status": "completed", "model": "seedream-5-lite", "data": [MEDIA]}
[COPY] = plan(ANSWER, "key", "bucket")


def upload_to(
    s3: S3Client, args: dict | None = None, *, bucket: str = "bucket", replaces: bool = True
) -> S3Upload:
    return S3Upload(S3Store(s3, None), replace(COPY, bucket=bucket), args or {}, replaces=replaces)


def fill(upload: S3Upload, size: int) -> None:
    """Write so many bytes, a megabyte at a time as a download brings them."""
    for start in range(0, size, 1_000_003):
        upload.write(b"x" * min(1_000_003, size - start))


@pytest.fixture
def s3(monkeypatch) -> Iterator[S3Client]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        yield client


def leftovers(s3: S3Client) -> tuple[list[str], list[str]]:
    objects = s3.list_objects_v2(Bucket="bucket").get("Contents", [])
    uploads = s3.list_multipart_uploads(Bucket="bucket").get("Uploads", [])
    return [entry["Key"] for entry in objects], [entry["Key"] for entry in uploads]


@pytest.mark.parametrize(
    "size",
    [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 2 * PART_BYTES + 7],
)
def test_an_object_is_what_was_written(s3, size):
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    with upload_to(s3, {"ContentType": "image/png"}) as upload:
        for start in range(0, size, 1_000_003):
            upload.write(content[start : start + 1_000_003])
        etag = upload.complete()
    stored = s3.get_object(Bucket="bucket", Key="key")
    assert stored["Body"].read() == content
    assert stored["ContentType"] == "image/png"
    assert stored["ETag"] == f'"{etag}"'
    assert (upload.size, upload.sha256) == (size, hashlib.sha256(content).hexdigest())
    assert leftovers(s3) == (["key"], [])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 3 * 1024 * 1024), max_size=6), seed=st.binary(min_size=1, max_size=64))
def test_however_a_stream_is_cut_the_object_is_the_same(s3, sizes, seed):
    chunks = [(seed * (size // len(seed) + 1))[:size] for size in sizes]
    with upload_to(s3) as upload:
        for chunk in chunks:
            upload.write(chunk)
        upload.complete()
    assert s3.get_object(Bucket="bucket", Key="key")["Body"].read() == b"".join(chunks)
    assert upload.sha256 == hashlib.sha256(b"".join(chunks)).hexdigest()


@pytest.mark.parametrize("written", [10, 2 * PART_BYTES], ids=["one part", "several parts"])
def test_what_is_not_completed_leaves_nothing_behind(s3, written):
    with upload_to(s3) as upload:
        fill(upload, written)
    assert leftovers(s3) == ([], [])


def test_options_go_to_each_request_that_knows_them(s3):
    args = {
        "ContentType": "image/webp",
        "Metadata": {"a": "b"},
        "Tagging": "team=art",
        "StorageClass": "STANDARD_IA",
    }
    with upload_to(s3, args) as upload:
        fill(upload, 2 * PART_BYTES)
        upload.complete()
    stored = s3.head_object(Bucket="bucket", Key="key")
    assert (stored["ContentType"], stored["Metadata"], stored["StorageClass"]) == (
        "image/webp",
        {"a": "b"},
        "STANDARD_IA",
    )
    assert s3.get_object_tagging(Bucket="bucket", Key="key")["TagSet"] == [{"Key": "team", "Value": "art"}]


def test_a_missing_bucket_is_one_sentence(s3):
    with pytest.raises(ObjectStoreError) as error, upload_to(s3, bucket="nobody-s") as upload:
        upload.complete()
    assert str(error.value) == (
        "S3 could not store s3://nobody-s/key: there is no bucket 'nobody-s'. Nothing was billed for the copy."
    )


def test_an_object_that_must_not_be_replaced_is_not(s3):
    s3.put_object(Bucket="bucket", Key="key", Body=b"theirs")
    with pytest.raises(OccupiedKeyError), upload_to(s3, replaces=False) as upload:
        upload.complete()
    assert s3.get_object(Bucket="bucket", Key="key")["Body"].read() == b"theirs"
    with upload_to(s3, replaces=True) as upload:
        upload.write(b"ours")
        upload.complete()
    assert s3.get_object(Bucket="bucket", Key="key")["Body"].read() == b"ours"


def test_a_large_object_is_written_in_no_more_parts_than_s3_takes(s3):
    with upload_to(s3) as upload:
        upload.expect(PART_BYTES * 10_000 * 3)
        fill(upload, 3 * PART_BYTES)
        assert leftovers(s3) == ([], [])
        upload.complete()
    assert s3.head_object(Bucket="bucket", Key="key")["ContentLength"] == 3 * PART_BYTES


def test_extra_args_are_copied_and_never_changed(s3):
    given_args = {"Metadata": {"team": "art"}, "StorageClass": "STANDARD_IA"}
    args = S3Store(s3, given_args).object_args(COPY)
    assert given_args == {"Metadata": {"team": "art"}, "StorageClass": "STANDARD_IA"}
    assert args["StorageClass"] == "STANDARD_IA"
    assert args["ContentType"] == "image/png"
    assert args["Metadata"]["team"] == "art"


def test_the_user_s_options_win(s3):
    own = {"ContentType": "application/x", "Metadata": {"getimg-model": "mine"}, "ChecksumAlgorithm": "CRC32"}
    args = S3Store(s3, own).object_args(COPY)
    assert args["ContentType"] == "application/x"
    assert args["Metadata"]["getimg-model"] == "mine"
    with S3Upload(S3Store(s3, own), COPY, args) as upload:
        upload.write(b"x")
        upload.complete()
    assert "ChecksumSHA256" not in s3.head_object(Bucket="bucket", Key="key", ChecksumMode="ENABLED")


def test_metadata_tells_where_an_object_comes_from_in_plain_ascii(s3):
    [copy] = plan({**ANSWER, "model": "modèle 5"}, "key", "bucket")
    copy = replace(copy, prompt_sha256="ab" * 32, request_sha256="cd" * 32)
    metadata = S3Store(s3, None).object_args(copy)["Metadata"]
    assert metadata == {
        "getimg-generation-id": "img_1",
        "getimg-index": "0",
        "getimg-model": "mod%C3%A8le 5",
        "getimg-deletes-at": "2100-01-01T00:00:00+00:00",
        "getimg-prompt-sha256": "ab" * 32,
        "getimg-request-sha256": "cd" * 32,
    }


@pytest.mark.parametrize(
    ("extra_args", "sentence"),
    [
        ({"StorageKlass": "x", "ACL": "private"}, "extra_args has StorageKlass, which can't be set"),
        ({"Bucket": "other"}, "extra_args has Bucket, which can't be set"),
        ({"IfNoneMatch": "*"}, "extra_args has IfNoneMatch, which can't be set"),
        ("ACL=private", "extra_args is a str: a dict of S3 options is allowed"),
        (
            {"Metadata": {"a": 1}},
            r"extra_args\['Metadata'\] is .*: a dict of ASCII names and texts is allowed",
        ),
        (
            {"Metadata": {"a": "ä"}},
            r"extra_args\['Metadata'\] is .*: a dict of ASCII names and texts is allowed",
        ),
        (
            {"Metadata": {"a": "x" * 2000}},
            "The metadata of s3://bucket/key is .* bytes .*: S3 allows 2048 in all",
        ),
    ],
)
def test_extra_args_that_s3_doesn_t_take_are_named(s3, extra_args, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        S3Store(s3, extra_args).object_args(COPY)
