# SPDX-License-Identifier: Apache-2.0
"""
Save to a store that refuses what Amazon S3 accepts, or omits what Amazon S3 returns.

Behind the refusals is a real server, which checks signatures, checksums and conditions: a saved file was sent correctly.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.s3 import copier
from tests.support.s3_faults import S3FaultProxy
from tests.support.saving import Saving, bytes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS
    from tests.support.s3_requests import ProxiedRequest

ALWAYS = 99
SHA256 = "x-amz-checksum-sha256"
CONDITION = "If-None-Match"


def refuses(header: str, **how: Any) -> dict[str, Any]:
    return {"kind": "status", "operation": "PutObject", "header": header, "times": ALWAYS, **how}


CHECKSUM_REFUSED = {
    "400 InvalidArgument": refuses(
        SHA256, code="InvalidArgument", message=f"Unsupported header '{SHA256}' received for this API call."
    ),
    "400 ArgumentName": refuses(
        SHA256, code="InvalidArgument", elements={"ArgumentName": "x-amz-checksum-sha256"}
    ),
    "400 in capitals": refuses(SHA256, code="InvalidRequest", message="X-Amz-Checksum-Sha256: unknown"),
    "501 NotImplemented": refuses(SHA256, code="NotImplemented", message=f"{SHA256} is not implemented"),
    "501 Header": refuses(
        SHA256,
        code="NotImplemented",
        message="A header you provided implies functionality that is not implemented",
        elements={"Header": SHA256},
    ),
}
CONDITION_REFUSED = {
    "501 NotImplemented": refuses(CONDITION, code="NotImplemented"),
    "501 of another code": refuses(CONDITION, status=501, code="UnsupportedOperation"),
    "501 without a body": refuses(CONDITION, status=501, is_empty=True),
    "400 that names it": refuses(CONDITION, code="InvalidArgument", message="If-None-Match is not supported"),
    "400 that names it elsewhere": refuses(
        CONDITION, code="InvalidRequest", elements={"ArgumentName": "if-none-match"}
    ),
    "412 without a body": refuses(CONDITION, status=412, is_empty=True),
}
BOTH_REFUSED = [
    ("501 NotImplemented", "501 Header"),
    ("400 that names it", "400 InvalidArgument"),
    ("412 without a body", "400 InvalidArgument"),
]
# The faults, and the checksum and condition headers of the write that then succeeds; without faults, it has both.
REFUSALS = [
    *(
        pytest.param([fault], {"content-md5", "if-none-match"}, id=f"checksum: {name}")
        for name, fault in CHECKSUM_REFUSED.items()
    ),
    *(pytest.param([fault], {SHA256}, id=f"condition: {name}") for name, fault in CONDITION_REFUSED.items()),
    # In both orders: a request gets the first fault that matches.
    *(
        pytest.param(
            order([CONDITION_REFUSED[one], CHECKSUM_REFUSED[other]]),
            {"content-md5"},
            id=f"{name}: {one}, {other}",
        )
        for one, other in BOTH_REFUSED
        for name, order in {"both": list, "both, reversed": lambda faults: faults[::-1]}.items()
    ),
]
each_refusal = pytest.mark.parametrize(("faults", "sent"), REFUSALS)
# For tests that need only one of the two.
without_tls = pytest.mark.parametrize("picky", ["http"], indirect=True)
with_tls = pytest.mark.parametrize("picky", ["https"], indirect=True)


@pytest.fixture(scope="module")
def plain(seaweedfs: SeaweedFS) -> Iterator[S3FaultProxy]:
    with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def encrypted(seaweedfs: SeaweedFS, authority: trustme.CA) -> Iterator[S3FaultProxy]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with S3FaultProxy(seaweedfs.endpoint_url, tls=context) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def own_bucket(seaweedfs: SeaweedFS) -> str:
    return seaweedfs.create_bucket(f"picky-{uuid.uuid4().hex[:12]}")


@pytest.fixture(params=["http", "https"])
def picky(request: pytest.FixtureRequest) -> S3FaultProxy:
    """The store that the AWS connection points to."""
    proxy: S3FaultProxy = request.getfixturevalue("plain" if request.param == "http" else "encrypted")
    proxy.clear()
    return proxy


@pytest.fixture
def connect(
    monkeypatch, picky: S3FaultProxy, seaweedfs: SeaweedFS, authority: trustme.CA, tmp_path: Path
) -> Callable[..., None]:
    """Return a function that points the AWS connection to the store, with further client settings."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def lead(**config: Any) -> None:
        connection = json.loads(picky.aws_connection(seaweedfs.aws_connection()))
        connection["extra"]["verify"] = str(tmp_path / "ca.pem")
        connection["extra"]["config_kwargs"] |= {"retries": {"total_max_attempts": 1}, **config}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))

    return lead


@pytest.fixture
def saving(
    monkeypatch, connect, getimg_default: GetimgSimulator, seaweedfs: SeaweedFS, own_bucket: str, context
) -> Saving:
    connect()
    # Shorter pauses between attempts, to save time; their number stays the same.
    monkeypatch.setattr(copier, "BACKOFF_FIRST", 0.01)
    getimg_default.settings(file_size=50_000)
    return Saving(getimg_default, seaweedfs.client(), own_bucket, context)


def puts(picky: S3FaultProxy, *, done: bool = True) -> list[ProxiedRequest]:
    """Return the writes that arrived: only those that succeeded, or all."""
    return [
        request
        for request in picky.requests
        if request.operation == "PutObject" and (not done or request.status == 200)
    ]


def kind(request: ProxiedRequest) -> set[str]:
    """Return the names of a write's headers for checksums, the condition and the body's encoding."""
    names = (
        "x-amz-checksum-",
        "x-amz-sdk-checksum",
        "x-amz-trailer",
        "content-md5",
        "content-encoding",
        "if-none-match",
    )
    return {name for name in request.headers if name.startswith(names)}


@each_refusal
def test_file_is_saved_without_what_the_store_refuses(saving, picky, faults, sent):
    response = saving.generate()
    picky.set_faults(faults)
    [row] = saving.transfer(response)
    content = bytes_of(response)
    assert saving.content("0.jpg") == content
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    head = saving.client.head_object(Bucket=saving.bucket, Key=row["key"])
    assert head["ContentType"] == "image/jpeg"
    assert head["Metadata"]["getimg-generation-id"] == response["id"]
    assert row["etag"] == head["ETag"].strip('"')
    [done] = puts(picky)
    # What the store accepts is still sent.
    assert kind(done) == sent
    # A retry finds the object.
    assert saving.transfer(response, try_number=2) == [row]


@with_tls
@each_refusal
def test_batch_and_its_manifest_are_saved_without_what_the_store_refuses(
    saving, simulator, picky, faults, sent
):
    picky.set_faults(faults)
    summary = saving.batch(3)
    assert (summary["saved"], summary["failed"]) == (3, 0)
    assert saving.keys() == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert [line["outcome"] for line in saving.manifest(summary)] == ["saved"] * 3
    assert len(simulator.ledger) == 3
    # Except for the condition: a manifest replaces that of an earlier try.
    for request in puts(picky):
        assert kind(request) - {"if-none-match"} == sent - {"if-none-match"}, request


def test_content_md5_protects_the_body_if_the_store_refuses_sha256(saving, picky):
    response = saving.generate()
    corrupted = {"kind": "corrupt", "operation": "PutObject"}
    picky.set_faults([CHECKSUM_REFUSED["400 InvalidArgument"], corrupted])
    with pytest.raises(errors.ObjectStoreError, match=r"400 BadDigest.*Content-M"):
        saving.transfer(response)
    assert saving.keys() == []
    saving.transfer(response, try_number=2)
    assert saving.content("0.jpg") == bytes_of(response)


@with_tls
@pytest.mark.parametrize("if_exists", ["skip", "fail"])
@pytest.mark.parametrize("fault", CONDITION_REFUSED.values(), ids=CONDITION_REFUSED.keys())
def test_object_that_appears_before_a_write_is_kept_if_the_store_refuses_conditions(
    saving, picky, fault, if_exists
):
    saving.put("key", b"theirs")
    # The check before the download doesn't see it yet.
    missing = {"kind": "status", "operation": "HeadObject", "status": 404, "is_empty": True}
    picky.set_faults([missing, fault])
    with pytest.raises(errors.ObjectExistsError):
        saving.transfer(saving.generate(), "key", if_exists=if_exists)
    assert saving.content("key") == b"theirs"
    assert picky.requests[-1].operation in ("HeadObject", "GetObject")


@pytest.mark.parametrize("if_exists", ["skip", "fail"])
def test_object_that_may_be_listed_but_not_read_is_kept_if_the_store_refuses_conditions(
    saving, picky, if_exists
):
    saving.put("key", b"theirs")
    denied = {"kind": "status", "method": "HEAD", "status": 403, "is_empty": True, "times": ALWAYS}
    picky.set_faults([denied, CONDITION_REFUSED["501 NotImplemented"]])
    with pytest.raises(errors.ObjectExistsError):
        saving.transfer(saving.generate(), "key", if_exists=if_exists)
    assert saving.content("key") == b"theirs"


def test_object_is_kept_if_the_store_refuses_conditions_and_is_too_busy_to_list_it(saving, picky):
    saving.put("key", b"theirs")
    denied = {"kind": "status", "method": "HEAD", "status": 403, "is_empty": True, "times": ALWAYS}
    busy = {
        "kind": "status",
        "operation": "ListObjectsV2",
        "status": 503,
        "code": "SlowDown",
        "times": ALWAYS,
    }
    picky.set_faults([denied, busy, CONDITION_REFUSED["501 NotImplemented"]])
    with pytest.raises(errors.ObjectStoreError, match=r"S3 refused to list s3://\S+/key"):
        saving.transfer(saving.generate(), "key", if_exists="fail")
    assert saving.content("key") == b"theirs"


@pytest.mark.parametrize(
    "extra_args",
    [None, {"ChecksumAlgorithm": "CRC32"}, {"ChecksumAlgorithm": "SHA256"}],
    ids=["ours", "CRC32", "SHA256"],
)
def test_body_is_sent_without_trailers_if_the_store_refuses_them(saving, picky, extra_args):
    response = saving.generate()
    refused = refuses("x-amz-trailer", code="MissingContentLength", message="You must provide Content-Length")
    picky.set_faults([refused])
    saving.transfer(response, extra_args=extra_args)
    assert saving.content("0.jpg") == bytes_of(response)
    [done] = puts(picky)
    assert "aws-chunked" not in done.headers.get("content-encoding", "")


@pytest.mark.parametrize(
    "extra_args",
    [None, {"ChecksumAlgorithm": "CRC32"}, {"ChecksumAlgorithm": "SHA1"}],
    ids=["ours", "CRC32", "SHA1"],
)
def test_checksum_algorithm_is_omitted_if_the_store_refuses_it(saving, picky, extra_args):
    response = saving.generate()
    header = "x-amz-sdk-checksum-algorithm"
    picky.set_faults([refuses(header, code="InvalidArgument", message=f"Unsupported header {header}")])
    saving.transfer(response, extra_args=extra_args)
    assert saving.content("0.jpg") == bytes_of(response)


@without_tls
def test_body_is_signed_if_the_store_refuses_unsigned_payloads(saving, picky):
    response = saving.generate()
    message = "x-amz-content-sha256 must be a valid SHA256 value"
    picky.set_faults(
        [refuses("x-amz-content-sha256: UNSIGNED-PAYLOAD", code="InvalidArgument", message=message)]
    )
    saving.transfer(response)
    assert saving.content("0.jpg") == bytes_of(response)


class TestWhenRequired:
    """``request_checksum_calculation=when_required``, the setting for stores that don't support checksums."""

    @pytest.fixture(params=["connection", "environment"])
    def _said(self, request, saving, connect, monkeypatch):
        if request.param == "connection":
            connect(
                request_checksum_calculation="when_required", response_checksum_validation="when_required"
            )
        else:
            monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")

    @pytest.mark.usefixtures("_said")
    def test_files_and_manifests_are_sent_with_content_md5_as_the_only_checksum(self, saving, picky):
        response = saving.generate()
        saving.transfer(response)
        saving.batch(2)
        assert saving.content("0.jpg") == bytes_of(response)
        assert len(puts(picky)) == len(puts(picky, done=False)) >= 4
        for request in puts(picky):
            assert kind(request) - {"if-none-match"} == {"content-md5"}, request


def test_each_write_has_its_sha256_and_a_plain_body_by_default(saving, picky):
    saving.transfer(saving.generate())
    summary = saving.batch(2)
    assert len(puts(picky)) == len(puts(picky, done=False))
    for request in puts(picky):
        assert kind(request) - {"if-none-match"} == {SHA256}, request
    assert any(summary["manifest"].endswith(request.key) for request in puts(picky))


@without_tls
def test_upload_whose_response_has_no_etag_is_saved(saving, picky):
    response = saving.generate()
    without = {"kind": "rewrite", "times": ALWAYS, "response_headers": {"ETag": None}}
    picky.set_faults([without])
    [row] = saving.transfer(response)
    assert saving.content("0.jpg") == bytes_of(response)
    assert not row["etag"]
    picky.set_faults([without])
    assert saving.batch(2)["saved"] == 2


@without_tls
def test_successful_response_without_a_stored_object_is_an_error(saving, picky):
    """Such as from a proxy that returns 200 for everything."""
    response = saving.generate()
    picky.set_faults([{"kind": "status", "operation": "PutObject", "status": 200, "is_empty": True}])
    with pytest.raises(errors.ObjectStoreError):
        saving.transfer(response)
    saving.transfer(response, try_number=2)
    assert saving.content("0.jpg") == bytes_of(response)


@without_tls
@pytest.mark.parametrize("header", ["x-amz-object-size", "x-amz-server-side-encryption-bucket-key-enabled"])
def test_write_with_an_invalid_response_header_succeeds(saving, picky, header):
    response = saving.generate()
    odd = {"kind": "rewrite", "operation": "PutObject", "response_headers": {header: "many"}}
    picky.set_faults([odd])
    [row] = saving.transfer(response)
    assert saving.content("0.jpg") == bytes_of(response)
    assert row["etag"]


@without_tls
@pytest.mark.parametrize(
    "how",
    [
        {"status": 200, "is_empty": True},
        {"status": 200, "code": "Odd"},
        {"code": "AccessDenied"},
        {"code": "NotImplemented"},
    ],
    ids=["empty", "odd", "denied", "unknown"],
)
def test_batch_saves_to_free_keys_and_keeps_other_objects_if_listing_fails(saving, picky, how):
    saving.put("0003.jpg", b"theirs")
    picky.set_faults([{"kind": "status", "operation": "ListObjectsV2", "times": ALWAYS, **how}])
    with pytest.raises(errors.BatchIncompleteError):
        saving.batch(17, max_failures=0)
    assert len(saving.keys()) == 17
    assert saving.content("0003.jpg") == b"theirs"


@without_tls
@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": None},
        {SHA256: "not base64!"},
        {SHA256: "AAAA"},
        {SHA256: "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=-2"},
        {SHA256: None, "x-amz-meta-getimg-sha256": None},
        {SHA256: None, "x-amz-meta-getimg-sha256": "nonsense"},
        {"Content-Type": None, "Last-Modified": "yesterday", "x-amz-missing-meta": "none"},
    ],
    ids=["no ETag", "no base64", "short", "of parts", "no digest", "no hex", "odd"],
)
def test_retry_recognizes_its_object_despite_missing_or_invalid_head_headers(saving, picky, headers):
    response = saving.generate()
    [row] = saving.transfer(response)
    described = {"kind": "rewrite", "operation": "HeadObject", "times": ALWAYS, "response_headers": headers}
    picky.set_faults([described])
    [again] = saving.transfer(response, try_number=2)
    assert (again["uri"], again["sha256"]) == (row["uri"], row["sha256"])
    assert len(puts(picky)) == 1


@without_tls
def test_head_request_omits_the_checksum_mode_if_the_store_refuses_it(saving, picky):
    response = saving.generate()
    [row] = saving.transfer(response)
    refused = {"kind": "status", "operation": "HeadObject", "header": "x-amz-checksum-mode", "times": ALWAYS}
    picky.set_faults([{**refused, "status": 400, "code": "InvalidArgument"}])
    assert saving.transfer(response, try_number=2) == [row]


@without_tls
@pytest.mark.parametrize(
    ("code", "status"),
    [("AccessDenied", 403), ("InvalidRequest", 400), ("EntityTooLarge", 400), ("NoSuchBucket", 404)],
)
def test_unrelated_error_does_not_drop_the_checksum_or_the_condition(saving, picky, code, status):
    response = saving.generate()
    fault = {"kind": "status", "operation": "PutObject", "code": code, "status": status, "times": ALWAYS}
    picky.set_faults([fault])
    with pytest.raises(errors.ObjectStoreError):
        saving.transfer(response)
    for request in puts(picky, done=False):
        assert SHA256 in request.headers
        assert "if-none-match" in request.headers
    assert saving.keys() == []
