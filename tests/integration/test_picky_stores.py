# SPDX-License-Identifier: Apache-2.0
"""
Saving to a store that refuses what Amazon's accepts, or leaves out what Amazon's returns.

Behind the refusals is a real server, which checks signatures, checksums and conditions: what is saved was sent right.
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
# The faults, and what is sent then instead of a SHA-256 under a condition.
REFUSALS = [
    *(
        pytest.param([fault], {"content-md5", "if-none-match"}, id=f"checksum: {name}")
        for name, fault in CHECKSUM_REFUSED.items()
    ),
    *(pytest.param([fault], {SHA256}, id=f"condition: {name}") for name, fault in CONDITION_REFUSED.items()),
    # A request meets the first fault that matches: each has its turn.
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
# What has nothing to do with TLS, or all to do with it, is tested in one way.
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
    """The store that the AWS connection leads to."""
    proxy: S3FaultProxy = request.getfixturevalue("plain" if request.param == "http" else "encrypted")
    proxy.clear()
    return proxy


@pytest.fixture
def connect(
    monkeypatch, picky: S3FaultProxy, seaweedfs: SeaweedFS, authority: trustme.CA, tmp_path: Path
) -> Callable[..., None]:
    """Lead the AWS connection to the store, with settings of one's own."""
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
    """Return the writes that came; only those that were done, or all."""
    return [
        request
        for request in picky.requests
        if request.operation == "PutObject" and (not done or request.status == 200)
    ]


def kind(request: ProxiedRequest) -> set[str]:
    """Return which headers on checksums, the condition and the body's form a write had."""
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
def test_a_file_is_saved_all_the_same(saving, picky, faults, sent):
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
    # What was not refused is sent as before.
    assert kind(done) == sent
    # A second try finds it.
    assert saving.transfer(response, try_number=2) == [row]


@with_tls
@each_refusal
def test_a_batch_is_saved_all_the_same_and_its_manifest_by_the_same_call(
    saving, simulator, picky, faults, sent
):
    picky.set_faults(faults)
    summary = saving.batch(3)
    assert (summary["saved"], summary["failed"]) == (3, 0)
    assert saving.keys() == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert [line["outcome"] for line in saving.manifest(summary)] == ["saved"] * 3
    assert len(simulator.ledger) == 3
    # But for the condition: a manifest replaces the one of an earlier try.
    for request in puts(picky):
        assert kind(request) - {"if-none-match"} == sent - {"if-none-match"}, request


def test_the_md5_protects_what_is_saved(saving, picky):
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
def test_what_slips_in_before_the_write_is_left_alone(saving, picky, fault, if_exists):
    saving.put("key", b"theirs")
    # The first look does not see it yet.
    missing = {"kind": "status", "operation": "HeadObject", "status": 404, "is_empty": True}
    picky.set_faults([missing, fault])
    with pytest.raises(errors.ObjectExistsError):
        saving.transfer(saving.generate(), "key", if_exists=if_exists)
    assert saving.content("key") == b"theirs"
    assert picky.requests[-1].operation in ("HeadObject", "GetObject")


@pytest.mark.parametrize(
    "extra_args",
    [None, {"ChecksumAlgorithm": "CRC32"}, {"ChecksumAlgorithm": "SHA256"}],
    ids=["ours", "CRC32", "SHA256"],
)
def test_a_store_that_takes_no_trailers_gets_a_plain_body(saving, picky, extra_args):
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
def test_a_store_that_refuses_the_algorithm_gets_the_file_without(saving, picky, extra_args):
    response = saving.generate()
    header = "x-amz-sdk-checksum-algorithm"
    picky.set_faults([refuses(header, code="InvalidArgument", message=f"Unsupported header {header}")])
    saving.transfer(response, extra_args=extra_args)
    assert saving.content("0.jpg") == bytes_of(response)


@without_tls
def test_a_store_that_takes_no_unsigned_bodies_gets_a_signed_one(saving, picky):
    response = saving.generate()
    message = "x-amz-content-sha256 must be a valid SHA256 value"
    picky.set_faults(
        [refuses("x-amz-content-sha256: UNSIGNED-PAYLOAD", code="InvalidArgument", message=message)]
    )
    saving.transfer(response)
    assert saving.content("0.jpg") == bytes_of(response)


class TestWhenRequired:
    """``request_checksum_calculation=when_required``: what stores ask for that know no checksums."""

    @pytest.fixture(params=["connection", "environment"])
    def _said(self, request, saving, connect, monkeypatch):
        if request.param == "connection":
            connect(
                request_checksum_calculation="when_required", response_checksum_validation="when_required"
            )
        else:
            monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")

    @pytest.mark.usefixtures("_said")
    def test_no_checksum_is_sent_with_anything(self, saving, picky):
        response = saving.generate()
        saving.transfer(response)
        saving.batch(2)
        assert saving.content("0.jpg") == bytes_of(response)
        assert len(puts(picky)) == len(puts(picky, done=False)) >= 4
        for request in puts(picky):
            assert kind(request) - {"if-none-match"} == {"content-md5"}, request


def test_by_default_each_write_has_its_sha256_and_a_plain_body(saving, picky):
    saving.transfer(saving.generate())
    summary = saving.batch(2)
    assert len(puts(picky)) == len(puts(picky, done=False))
    for request in puts(picky):
        assert kind(request) - {"if-none-match"} == {SHA256}, request
    assert any(summary["manifest"].endswith(request.key) for request in puts(picky))


@without_tls
def test_an_upload_without_an_etag_is_saved(saving, picky):
    response = saving.generate()
    without = {"kind": "rewrite", "times": ALWAYS, "response_headers": {"ETag": None}}
    picky.set_faults([without])
    [row] = saving.transfer(response)
    assert saving.content("0.jpg") == bytes_of(response)
    assert not row["etag"]
    picky.set_faults([without])
    assert saving.batch(2)["saved"] == 2


@without_tls
def test_a_write_that_is_answered_like_one_and_was_none_is_no_success(saving, picky):
    """Such as by a proxy that says 200 to everything."""
    response = saving.generate()
    picky.set_faults([{"kind": "status", "operation": "PutObject", "status": 200, "is_empty": True}])
    with pytest.raises(errors.ObjectStoreError):
        saving.transfer(response)
    saving.transfer(response, try_number=2)
    assert saving.content("0.jpg") == bytes_of(response)


@without_tls
@pytest.mark.parametrize("header", ["x-amz-object-size", "x-amz-server-side-encryption-bucket-key-enabled"])
def test_a_write_that_is_answered_oddly_is_done(saving, picky, header):
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
def test_a_batch_can_do_without_a_listing(saving, picky, how):
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
def test_a_second_try_finds_what_is_described_oddly(saving, picky, headers):
    response = saving.generate()
    [row] = saving.transfer(response)
    described = {"kind": "rewrite", "operation": "HeadObject", "times": ALWAYS, "response_headers": headers}
    picky.set_faults([described])
    [again] = saving.transfer(response, try_number=2)
    assert (again["uri"], again["sha256"]) == (row["uri"], row["sha256"])
    assert len(puts(picky)) == 1


@without_tls
def test_a_store_that_refuses_the_checksum_mode_is_looked_at_without(saving, picky):
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
def test_a_refusal_of_something_else_is_not_played_around(saving, picky, code, status):
    """Neither the checksum nor the condition is given up for an error that has nothing to do with them."""
    response = saving.generate()
    fault = {"kind": "status", "operation": "PutObject", "code": code, "status": status, "times": ALWAYS}
    picky.set_faults([fault])
    with pytest.raises(errors.ObjectStoreError):
        saving.transfer(response)
    for request in puts(picky, done=False):
        assert SHA256 in request.headers
        assert "if-none-match" in request.headers
    assert saving.keys() == []
