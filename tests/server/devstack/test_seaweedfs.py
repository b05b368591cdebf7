# SPDX-License-Identifier: Apache-2.0
"""What other tests rely on: that this server refuses what S3 refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from devstack import SeaweedFS


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
