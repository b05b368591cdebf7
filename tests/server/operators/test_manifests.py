# SPDX-License-Identifier: Apache-2.0
"""``read_manifest``, with the manifest of a batch and with other files."""

from __future__ import annotations

import json

import pytest

from airflow_provider_getimg.api.errors import InvalidInputError, UnavailableError
from airflow_provider_getimg.manifests import ManifestLine, read_manifest
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator

LINE = {"row": 0, "outcome": "saved", "request": {"prompt": "A fox"}, "uri": "s3://b/0.jpg"}


@pytest.fixture
def client(monkeypatch, getimg_default, seaweedfs):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())
    return seaweedfs.client()


@pytest.fixture
def write(client, bucket):
    def write(*lines: object) -> str:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        client.put_object(Bucket=bucket, Key="m.jsonl", Body=text.encode())
        return f"s3://{bucket}/m.jsonl"

    return write


def test_manifest_of_a_batch_is_read_back(client, bucket, context, simulator):
    simulator.faults.add({"on": "image", "kind": "status", "status": 400})
    requests = [{"prompt": f"Fox {number}", "labels": {"sku": f"A-{number}"}} for number in range(2)]
    summary = GenerateImagesToS3Operator(
        task_id="batch",
        requests=requests,
        defaults={"model": "sketch-mini"},
        s3_key=f"s3://{bucket}/{{sku}}.{{extension}}",
        concurrency=1,
        max_failures=1,
    ).execute(context())
    lines = read_manifest(summary["manifest"], summary["aws_conn_id"])
    assert [(line.row, line.labels) for line in lines] == [(0, {"sku": "A-0"}), (1, {"sku": "A-1"})]
    # Either row may have been sent first.
    failed, saved = sorted(lines, key=lambda line: line.is_saved)
    assert (failed.outcome, failed.is_saved, failed.uris) == ("failed", False, ())
    assert failed.error.startswith("getimg.ai refused the request (400")
    assert (saved.outcome, saved.uri) == ("saved", f"s3://{bucket}/{saved.labels['sku']}.jpg")
    assert saved.uris == (saved.uri,)
    assert saved.cost == 0.0025


def test_fields_added_by_later_versions_are_ignored(write):
    line = LINE | {"files": [{"uri": "s3://b/0.jpg"}, {"uri": "s3://b/0-1.jpg"}], "colour": "red"}
    assert read_manifest(write(line)) == [
        ManifestLine(0, "saved", {"prompt": "A fox"}, "s3://b/0.jpg", ("s3://b/0.jpg", "s3://b/0-1.jpg"))
    ]


def test_empty_manifest_has_no_lines(write):
    assert read_manifest(write("")) == []


@pytest.mark.parametrize(
    "line",
    [
        "a text",
        [1],
        {"prompt": "A fox"},
        LINE | {"row": "0"},
        LINE | {"request": None},
        LINE | {"uri": 5},
        LINE | {"files": "x"},
        LINE | {"files": [{}]},
        LINE | {"files": [{"uri": 5}]},
    ],
    ids=["text", "list", "requests", "row", "request", "uri", "files", "file", "uri-of-file"],
)
def test_file_that_is_not_a_manifest_is_rejected(write, line):
    with pytest.raises(InvalidInputError, match=r"uri must be that of a manifest, got s3://.*/m\.jsonl"):
        read_manifest(write(LINE, line))


@pytest.mark.parametrize("uri", [None, "m.jsonl", "s3://bucket"], ids=str)
def test_invalid_uri_is_rejected(client, uri):
    with pytest.raises(InvalidInputError, match="uri must be"):
        read_manifest(uri)


def test_missing_manifest_is_rejected(client, bucket):
    with pytest.raises(InvalidInputError, match=r"can't be read from S3: .*NoSuchKey"):
        read_manifest(f"s3://{bucket}/missing.jsonl")


def test_unreachable_store_raises_unavailable_error(client, bucket, monkeypatch):
    away = {
        "conn_type": "aws",
        "login": "x",
        "password": "x",
        "extra": {"endpoint_url": "http://127.0.0.1:1"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(away))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UnavailableError):
        read_manifest(f"s3://{bucket}/m.jsonl")
