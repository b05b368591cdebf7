# SPDX-License-Identifier: Apache-2.0
"""Other tests rely on this: the local server rejects what S3 rejects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from devstack import SeaweedFS


def test_wrong_secret_is_rejected(seaweedfs: SeaweedFS) -> None:
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        seaweedfs.client(secret_key="wrong").list_buckets()


def test_unsigned_request_is_rejected(seaweedfs: SeaweedFS, bucket: str) -> None:
    from botocore import UNSIGNED

    with pytest.raises(ClientError, match="AccessDenied"):
        seaweedfs.client(signature_version=UNSIGNED).list_objects_v2(Bucket=bucket)


def test_if_none_match_prevents_overwriting_an_object(seaweedfs: SeaweedFS, bucket: str) -> None:
    client = seaweedfs.client()
    client.put_object(Bucket=bucket, Key="a", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="a", Body=b"second", IfNoneMatch="*")
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"first"


def test_upload_to_a_missing_bucket_is_rejected(seaweedfs: SeaweedFS) -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        seaweedfs.client().put_object(Bucket="never-made", Key="a", Body=b"")
