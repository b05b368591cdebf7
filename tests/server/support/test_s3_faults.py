# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import ssl
import threading
import time
from copy import copy
from typing import TYPE_CHECKING

import boto3
import httpx
import psutil
import pytest
import trustme
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from tests.support.s3_faults import S3FaultProxy, open_uploads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from mypy_boto3_s3.client import S3Client

    from devstack import SeaweedFS

BODY = os.urandom(3 * 1024 * 1024)
PART = 5 * 1024 * 1024


@pytest.fixture(scope="module")
def running(seaweedfs: SeaweedFS) -> Iterator[S3FaultProxy]:
    with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxy(running: S3FaultProxy) -> S3FaultProxy:
    running.clear()
    return running


def client_through(proxy: S3FaultProxy, seaweedfs: SeaweedFS, attempts: int = 1, **options: Any) -> S3Client:
    through = copy(seaweedfs)
    through.endpoint_url = proxy.url
    secret = options.pop("secret_key", None)
    return through.client(secret_key=secret, retries={"total_max_attempts": attempts}, **options)


@pytest.fixture
def client(proxy: S3FaultProxy, seaweedfs: SeaweedFS) -> S3Client:
    """Return a client that connects through the proxy and sends a request once."""
    return client_through(proxy, seaweedfs)


@pytest.fixture
def persistent(proxy: S3FaultProxy, seaweedfs: SeaweedFS) -> S3Client:
    """Return a client that connects through the proxy and sends a request up to three times."""
    return client_through(proxy, seaweedfs, attempts=3)


def keys(seaweedfs: SeaweedFS, bucket: str) -> list[str]:
    listed = seaweedfs.client().list_objects_v2(Bucket=bucket)
    return [item["Key"] for item in listed.get("Contents", [])]


def test_requests_and_responses_pass_through_unchanged(
    client: S3Client, seaweedfs: SeaweedFS, bucket: str, proxy: S3FaultProxy
) -> None:
    key = "folder/a b+c%20é=&?#.png"
    client.put_object(Bucket=bucket, Key=key, Body=BODY, ContentType="image/png", Metadata={"id": "42"})
    assert client.head_object(Bucket=bucket, Key=key)["ContentLength"] == len(BODY)
    response = client.get_object(Bucket=bucket, Key=key)
    assert response["Body"].read() == BODY
    assert (response["ContentType"], response["Metadata"]) == ("image/png", {"id": "42"})
    assert client.get_object(Bucket=bucket, Key=key, Range="bytes=10-19")["Body"].read() == BODY[10:20]
    assert [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    client.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": key})
    client.delete_object(Bucket=bucket, Key=key)
    client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "copy"}]})
    assert keys(seaweedfs, bucket) == []
    assert proxy.operations() == [
        "PutObject",
        "HeadObject",
        "GetObject",
        "GetObject",
        "ListObjectsV2",
        "CopyObject",
        "DeleteObject",
        "DeleteObjects",
    ]
    assert {request.key for request in proxy.requests[:4]} == {key}


def test_wrong_signature_is_still_rejected_by_the_server(
    proxy: S3FaultProxy, seaweedfs: SeaweedFS, bucket: str
) -> None:
    stranger = client_through(proxy, seaweedfs, secret_key="wrong")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        stranger.put_object(Bucket=bucket, Key="a", Body=b"x")
    assert (proxy.requests[0].status, proxy.requests[0].upstream_status) == (403, 403)


def test_wrong_checksum_is_still_rejected_by_the_server(client: S3Client, bucket: str) -> None:
    with pytest.raises(ClientError, match="BadDigest"):
        client.put_object(Bucket=bucket, Key="a", Body=b"x", ChecksumSHA256="A" * 43 + "=")


def test_requests_are_recorded_without_credentials(
    client: S3Client, bucket: str, proxy: S3FaultProxy, seaweedfs: SeaweedFS
) -> None:
    client.put_object(Bucket=bucket, Key="a", Body=b"x", IfNoneMatch="*", ChecksumAlgorithm="SHA256")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="a", Body=BODY, IfNoneMatch="*")
    link = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "a"})
    assert httpx.get(link, trust_env=False).content == b"x"
    first, second, read = proxy.requests
    assert (first.method, first.path, first.bucket, first.key) == ("PUT", f"/{bucket}/a", bucket, "a")
    assert (first.status, second.status, read.status) == (200, 412, 200)
    assert (first.headers["if-none-match"], first.body_bytes) == ("*", 1)
    assert "x-amz-checksum-sha256" in first.headers
    recorded = repr(proxy.requests).lower()
    assert "authorization" not in recorded
    assert "signature" not in recorded
    assert seaweedfs.access_key.lower() not in recorded


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ({"code": "SlowDown"}, 503, "SlowDown"),
        ({"code": "AccessDenied"}, 403, "AccessDenied"),
        ({"code": "NoSuchBucket"}, 404, "NoSuchBucket"),
        ({"status": 412}, 412, "PreconditionFailed"),
        ({"status": 500}, 500, "InternalError"),
        ({"status": 507, "code": "DiskFull"}, 507, "DiskFull"),
        ({}, 503, "SlowDown"),
    ],
    ids=["slow-down", "denied", "bucket", "precondition", "internal", "own", "default"],
)
def test_status_responds_with_an_s3_error_without_forwarding_the_request(
    client: S3Client,
    proxy: S3FaultProxy,
    seaweedfs: SeaweedFS,
    bucket: str,
    fault: dict[str, Any],
    status: int,
    code: str,
) -> None:
    proxy.set_faults([{"kind": "status", **fault}])
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket=bucket, Key="a", Body=BODY)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert caught.value.response["Error"]["Code"] == code
    assert (proxy.requests[0].status, proxy.requests[0].upstream_status) == (status, None)
    assert keys(seaweedfs, bucket) == []
    client.put_object(Bucket=bucket, Key="a", Body=BODY)


def test_status_sends_the_given_code_and_message(client: S3Client, proxy: S3FaultProxy, bucket: str) -> None:
    proxy.set_faults(
        [{"kind": "status", "code": "NotImplemented", "message": "Not here", "elements": {"Header": "a & b"}}]
    )
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket=bucket, Key="a", Body=BODY)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501
    said = caught.value.response["Error"]
    assert (said["Code"], said["Message"], said["Header"]) == ("NotImplemented", "Not here", "a & b")


def test_status_can_have_no_body(proxy: S3FaultProxy) -> None:
    proxy.set_faults([{"kind": "status", "status": 412, "is_empty": True}])
    response = httpx.put(f"{proxy.url}/bucket/a", content=b"x", trust_env=False)
    assert (response.status_code, response.content) == (412, b"")


@pytest.mark.parametrize("header", ["If-None-Match", "If-None-Match: *"])
def test_fault_hits_only_requests_with_its_header(
    client: S3Client, proxy: S3FaultProxy, bucket: str, header: str
) -> None:
    proxy.set_faults(
        [
            {"kind": "status", "status": 500, "header": "If-None-Match: another", "times": 9},
            {"kind": "status", "status": 501, "header": header, "times": 9},
        ]
    )
    client.put_object(Bucket=bucket, Key="a", Body=b"x")
    with pytest.raises(ClientError, match="NotImplemented"):
        client.put_object(Bucket=bucket, Key="b", Body=b"x", IfNoneMatch="*")
    client.put_object(Bucket=bucket, Key="b", Body=b"x")


def test_rewrite_changes_the_headers_of_the_response_from_the_server(
    client: S3Client, proxy: S3FaultProxy, seaweedfs: SeaweedFS, bucket: str
) -> None:
    proxy.set_faults(
        [{"kind": "rewrite", "response_headers": {"etag": None, "X-Amz-Version-Id": "7", "X-New": "1"}}]
    )
    response = client.put_object(Bucket=bucket, Key="a", Body=BODY)
    assert "ETag" not in response
    assert (response["VersionId"], response["ResponseMetadata"]["HTTPHeaders"]["x-new"]) == ("7", "1")
    assert seaweedfs.client().get_object(Bucket=bucket, Key="a")["Body"].read() == BODY


def test_upload_and_download_pass_through_over_tls(seaweedfs: SeaweedFS, bucket: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with S3FaultProxy(seaweedfs.endpoint_url, tls=context) as own:
        assert own.url.startswith("https://127.0.0.1:")
        trusting = boto3.session.Session().client(
            "s3",
            endpoint_url=own.url,
            verify=str(tmp_path / "ca.pem"),
            aws_access_key_id=seaweedfs.access_key,
            aws_secret_access_key=seaweedfs.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, proxies={}),
        )
        trusting.put_object(Bucket=bucket, Key="a", Body=BODY)
        assert trusting.get_object(Bucket=bucket, Key="a")["Body"].read() == BODY
        # Over TLS, botocore sends the checksum as a trailer, after the body.
        assert own.requests[0].headers["x-amz-trailer"] == "x-amz-checksum-crc32"


def test_status_on_head_raises_an_error_with_the_bare_status(
    client: S3Client, proxy: S3FaultProxy, bucket: str
) -> None:
    proxy.set_faults([{"kind": "status", "code": "AccessDenied", "operation": "HeadObject"}])
    with pytest.raises(ClientError, match=r"\(403\)"):
        client.head_object(Bucket=bucket, Key="a")


def test_broken_upload_stores_nothing_and_a_retry_succeeds(
    persistent: S3Client, proxy: S3FaultProxy, seaweedfs: SeaweedFS, bucket: str
) -> None:
    proxy.set_faults([{"kind": "reset_mid_upload"}])
    with pytest.raises(HTTPClientError):
        client_through(proxy, seaweedfs).put_object(Bucket=bucket, Key="a", Body=BODY)
    assert proxy.requests[0].body_bytes == len(BODY) // 2
    assert keys(seaweedfs, bucket) == []
    proxy.set_faults([{"kind": "reset_mid_upload", "method": "PUT"}])
    persistent.put_object(Bucket=bucket, Key="a", Body=BODY)
    assert [request.fault for request in proxy.requests[1:]] == ["reset_mid_upload", None]
    assert seaweedfs.client().get_object(Bucket=bucket, Key="a")["Body"].read() == BODY


def test_conditional_retry_after_a_lost_response_fails_on_its_own_object(
    persistent: S3Client, proxy: S3FaultProxy, seaweedfs: SeaweedFS, bucket: str
) -> None:
    proxy.set_faults([{"kind": "lost_response", "operation": "PutObject"}])
    with pytest.raises(ClientError, match="PreconditionFailed"):
        persistent.put_object(Bucket=bucket, Key="a", Body=BODY, IfNoneMatch="*")
    assert [(request.status, request.upstream_status) for request in proxy.requests] == [
        (None, 200),
        (412, 412),
    ]
    assert seaweedfs.client().get_object(Bucket=bucket, Key="a")["Body"].read() == BODY


@pytest.mark.parametrize("kind", ["lost_response", "reset_mid_response"])
def test_upload_is_stored_although_its_response_is_lost_or_broken(
    client: S3Client, proxy: S3FaultProxy, seaweedfs: SeaweedFS, bucket: str, kind: str
) -> None:
    proxy.set_faults([{"kind": kind}])
    with pytest.raises((ConnectionClosedError, HTTPClientError)):
        client.put_object(Bucket=bucket, Key="a", Body=BODY)
    assert keys(seaweedfs, bucket) == ["a"]


def test_broken_download_raises_an_error_while_the_body_is_read(
    client: S3Client, proxy: S3FaultProxy, bucket: str
) -> None:
    client.put_object(Bucket=bucket, Key="a", Body=BODY)
    proxy.set_faults([{"kind": "reset_mid_response", "operation": "GetObject"}])
    body = client.get_object(Bucket=bucket, Key="a")["Body"]
    with pytest.raises((ResponseStreamingError, IncompleteReadError, HTTPClientError)):
        body.read()


@pytest.mark.parametrize("operation", ["PutObject", "GetObject"])
def test_slow_request_takes_its_seconds_and_succeeds(
    client: S3Client, proxy: S3FaultProxy, bucket: str, operation: str
) -> None:
    proxy.set_faults([{"kind": "slow", "seconds": 0.6, "operation": operation}])
    began = time.monotonic()
    client.put_object(Bucket=bucket, Key="a", Body=BODY)
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == BODY
    assert time.monotonic() - began >= 0.6


def test_hang_sends_no_response_and_forwards_nothing_to_the_server(
    proxy: S3FaultProxy, seaweedfs: SeaweedFS, bucket: str
) -> None:
    proxy.set_faults([{"kind": "hang"}])
    impatient = client_through(proxy, seaweedfs, read_timeout=0.5)
    with pytest.raises(ReadTimeoutError):
        impatient.put_object(Bucket=bucket, Key="a", Body=BODY)
    assert keys(seaweedfs, bucket) == []
    proxy.set_faults([{"kind": "hang", "seconds": 0.2}])
    with pytest.raises(ConnectionClosedError):
        impatient.put_object(Bucket=bucket, Key="a", Body=BODY)


def test_hang_does_not_delay_the_shutdown_of_the_proxy(seaweedfs: SeaweedFS) -> None:
    with S3FaultProxy(seaweedfs.endpoint_url) as own:
        own.set_faults([{"kind": "hang"}])

        def ask() -> None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{own.url}/a/b", trust_env=False, timeout=30)

        waiting = threading.Thread(target=ask)
        waiting.start()
        while not own.requests:
            time.sleep(0.01)
        began = time.monotonic()
    waiting.join(5)
    assert time.monotonic() - began < 3
    assert not waiting.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(own.url.rpartition(":")[2])))


def test_fault_hits_only_matching_requests_the_given_number_of_times(
    client: S3Client, proxy: S3FaultProxy, bucket: str
) -> None:
    proxy.set_faults([{"kind": "status", "key_contains": "bad/", "method": "PUT", "skip": 1, "times": 2}])
    outcomes = []
    for key in ("good", "bad/0", "bad/1", "good", "bad/2", "bad/3"):
        try:
            client.put_object(Bucket=bucket, Key=key, Body=b"x")
            outcomes.append(key)
        except ClientError:
            outcomes.append(f"{key} failed")
    assert outcomes == ["good", "bad/0", "bad/1 failed", "good", "bad/2 failed", "bad/3"]
    assert proxy.faults == []


@pytest.mark.parametrize(
    "fault", [{"kind": "explode"}, {"kind": "hang", "wrong": 1}, {}], ids=["kind", "field", "none"]
)
def test_invalid_fault_is_rejected_and_none_is_set(proxy: S3FaultProxy, fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be one of|has no field"):
        proxy.set_faults([{"kind": "status"}, fault])
    assert proxy.faults == []


def test_open_uploads_are_listed_until_they_are_aborted(
    client: S3Client, proxy: S3FaultProxy, seaweedfs: SeaweedFS, bucket: str
) -> None:
    proxy.set_faults([{"kind": "status", "code": "SlowDown", "operation": "UploadPart", "skip": 1}])
    upload = client.create_multipart_upload(Bucket=bucket, Key="big")["UploadId"]
    client.upload_part(Bucket=bucket, Key="big", UploadId=upload, PartNumber=1, Body=b"a" * PART)
    with pytest.raises(ClientError, match="SlowDown"):
        client.upload_part(Bucket=bucket, Key="big", UploadId=upload, PartNumber=2, Body=b"b")
    assert open_uploads(seaweedfs.client(), bucket) == ["big"]
    assert keys(seaweedfs, bucket) == []
    client.abort_multipart_upload(Bucket=bucket, Key="big", UploadId=upload)
    assert open_uploads(seaweedfs.client(), bucket) == []
    assert proxy.operations("big") == [
        "CreateMultipartUpload",
        "UploadPart",
        "UploadPart",
        "AbortMultipartUpload",
    ]


def test_multipart_upload_completes_after_a_broken_part(
    persistent: S3Client, proxy: S3FaultProxy, seaweedfs: SeaweedFS, bucket: str
) -> None:
    proxy.set_faults([{"kind": "reset_mid_upload", "operation": "UploadPart", "skip": 1}])
    upload = persistent.create_multipart_upload(Bucket=bucket, Key="big")["UploadId"]
    parts: list[Any] = []
    for number, body in enumerate((b"a" * PART, b"b" * PART, b"c"), start=1):
        response = persistent.upload_part(
            Bucket=bucket, Key="big", UploadId=upload, PartNumber=number, Body=body
        )
        parts.append({"PartNumber": number, "ETag": response["ETag"]})
    persistent.complete_multipart_upload(
        Bucket=bucket, Key="big", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    stored = seaweedfs.client().get_object(Bucket=bucket, Key="big")["Body"].read()
    assert stored == b"a" * PART + b"b" * PART + b"c"
    assert open_uploads(seaweedfs.client(), bucket) == []


def test_body_of_a_rejected_upload_is_never_sent(client: S3Client, proxy: S3FaultProxy, bucket: str) -> None:
    proxy.set_faults([{"kind": "status", "code": "AccessDenied"}])
    with pytest.raises(ClientError, match="AccessDenied"):
        client.put_object(Bucket=bucket, Key="a", Body=BODY)
    # boto3 sends Expect: 100-continue, and no body after a rejection.
    assert proxy.requests[0].body_bytes == 0


def test_chunked_upload_without_a_content_length_arrives_intact(
    client: S3Client, proxy: S3FaultProxy, bucket: str
) -> None:
    link = client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "a"})
    response = httpx.put(link, content=iter([b"one ", b"two"]), trust_env=False)
    assert response.status_code == 200, response.text
    assert "content-length" not in proxy.requests[0].headers
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"one two"


def test_large_bodies_are_streamed_without_being_held_in_memory(
    client: S3Client, seaweedfs: SeaweedFS, bucket: str
) -> None:
    size = 256 * 1024 * 1024
    link = client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "large"})
    block = os.urandom(1024 * 1024)
    sent, received = hashlib.sha256(), hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        for _ in range(size // len(block)):
            sent.update(block)
            yield block

    before = psutil.Process().memory_info().rss
    peak = before
    httpx.put(link, content=blocks(), trust_env=False, timeout=60).raise_for_status()
    peak = max(peak, psutil.Process().memory_info().rss)
    for chunk in client.get_object(Bucket=bucket, Key="large")["Body"].iter_chunks(1024 * 1024):
        received.update(chunk)
        peak = max(peak, psutil.Process().memory_info().rss)
    assert received.digest() == sent.digest()
    assert peak - before < 64 * 1024 * 1024


def test_aws_connection_points_to_the_proxy_and_is_otherwise_unchanged(
    proxy: S3FaultProxy, seaweedfs: SeaweedFS
) -> None:
    direct = json.loads(seaweedfs.aws_connection())
    through = json.loads(proxy.aws_connection(seaweedfs.aws_connection()))
    assert through["extra"].pop("endpoint_url") == proxy.url
    direct["extra"].pop("endpoint_url")
    assert through == direct
