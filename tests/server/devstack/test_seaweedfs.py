# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import pytest
from airflow.sdk import Connection
from botocore.exceptions import ClientError

from devstack import SeaweedFS

if TYPE_CHECKING:
    from pathlib import Path


def test_wrong_secret_is_refused(seaweedfs: SeaweedFS) -> None:
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        seaweedfs.client(secret_key="wrong").list_buckets()


def test_unsigned_request_is_refused(seaweedfs: SeaweedFS, bucket: str) -> None:
    from botocore import UNSIGNED

    with pytest.raises(ClientError, match="AccessDenied"):
        seaweedfs.client(signature_version=UNSIGNED).list_objects_v2(Bucket=bucket)


def test_if_none_match_refuses_to_replace(seaweedfs: SeaweedFS, bucket: str) -> None:
    client = seaweedfs.client()
    client.put_object(Bucket=bucket, Key="a", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="a", Body=b"second", IfNoneMatch="*")
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"first"


def test_bucket_is_not_made_by_its_first_use(seaweedfs: SeaweedFS) -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        seaweedfs.client().put_object(Bucket="never-made", Key="a", Body=b"")


def test_listens_on_loopback_alone(seaweedfs: SeaweedFS) -> None:
    assert seaweedfs.process is not None
    addresses = {
        connection.laddr.ip
        for child in psutil.Process(seaweedfs.process.pid).children(recursive=True)
        for connection in child.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_connection_is_one_that_airflow_understands(seaweedfs: SeaweedFS) -> None:
    connection = Connection.from_json(seaweedfs.aws_connection())
    assert connection.conn_type == "aws"
    assert connection.password == seaweedfs.secret_key
    assert connection.extra_dejson["endpoint_url"] == seaweedfs.endpoint_url


def test_two_at_once_share_nothing_and_leave_nothing(
    seaweedfs: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with SeaweedFS(log=tmp_path / "weed.log") as other:
        assert other.endpoint_url != seaweedfs.endpoint_url
        other.create_bucket("mine")
        assert "mine" not in {item["Name"] for item in seaweedfs.client().list_buckets()["Buckets"]}
    assert os.listdir(tmp_path) == ["weed.log"]
