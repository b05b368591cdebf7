# SPDX-License-Identifier: Apache-2.0
"""Uploads against moto, in process; ``tests/integration`` repeats what moto can't show on a real server."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto import mock_aws

from airflow_provider_getimg.api.errors import InvalidInputError, ObjectStoreError
from airflow_provider_getimg.transfers.s3_upload import PART_BYTES, S3Upload, checked_extra_args

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client


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
    with S3Upload(s3, "bucket", "key", {"ContentType": "image/png"}) as upload:
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
    with S3Upload(s3, "bucket", "cut", {}) as upload:
        for chunk in chunks:
            upload.write(chunk)
        upload.complete()
    assert s3.get_object(Bucket="bucket", Key="cut")["Body"].read() == b"".join(chunks)
    assert upload.sha256 == hashlib.sha256(b"".join(chunks)).hexdigest()


@pytest.mark.parametrize("written", [10, 2 * PART_BYTES], ids=["one part", "several parts"])
def test_what_is_not_completed_leaves_nothing_behind(s3, written):
    with S3Upload(s3, "bucket", "key", {}) as upload:
        upload.write(b"x" * written)
    assert leftovers(s3) == ([], [])


def test_options_go_to_each_request_that_knows_them(s3):
    args = {
        "ContentType": "image/webp",
        "Metadata": {"a": "b"},
        "Tagging": "team=art",
        "StorageClass": "STANDARD_IA",
    }
    with S3Upload(s3, "bucket", "key", args) as upload:
        upload.write(b"x" * (PART_BYTES + 1))
        upload.complete()
    stored = s3.head_object(Bucket="bucket", Key="key")
    assert (stored["ContentType"], stored["Metadata"], stored["StorageClass"]) == (
        "image/webp",
        {"a": "b"},
        "STANDARD_IA",
    )
    assert s3.get_object_tagging(Bucket="bucket", Key="key")["TagSet"] == [{"Key": "team", "Value": "art"}]


def test_a_missing_bucket_is_one_sentence(s3):
    with pytest.raises(ObjectStoreError) as error, S3Upload(s3, "nobody-s", "k", {}) as upload:
        upload.complete()
    assert str(error.value) == "S3 has no bucket 'nobody-s' to store s3://nobody-s/k in."


def test_extra_args_are_copied_and_never_changed(s3):
    given_args = {"Metadata": {"a": "b"}}
    assert checked_extra_args(s3, given_args) == given_args
    assert checked_extra_args(s3, given_args) is not given_args
    assert checked_extra_args(s3, None) == {}


@pytest.mark.parametrize(
    ("extra_args", "sentence"),
    [
        ({"StorageKlass": "x", "ACL": "private"}, "extra_args has StorageKlass, which can't be set"),
        ({"Bucket": "other"}, "extra_args has Bucket, which can't be set"),
        ("ACL=private", "extra_args is a str: a dict of S3 options is allowed"),
    ],
)
def test_extra_args_that_s3_doesn_t_know_are_named(s3, extra_args, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        checked_extra_args(s3, extra_args)
