# SPDX-License-Identifier: Apache-2.0
"""``TransferToS3Operator`` with a real S3 server that is slow, refuses requests, drops connections, or has another writer."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.s3 import copier
from airflow_provider_getimg.s3.store import S3Store
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator
from tests.support.s3_faults import S3FaultProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS

KEY = "{generation_id}-{index}.{extension}"
MIB = 1024 * 1024
# How many attempts boto makes.
ATTEMPTS = 3
ALWAYS = 99

WRITE = "PutObject"
# Smaller files are kept in memory, larger ones on disk.
LARGE = 12 * MIB
each_size = pytest.mark.parametrize("size", [0, LARGE], ids=["in memory", "on disk"])

long = pytest.mark.long
SELDOM = [pytest.param(if_exists, marks=long) for if_exists in ("replace", "fail")]


@pytest.fixture(scope="module")
def running(seaweedfs: SeaweedFS) -> Iterator[S3FaultProxy]:
    with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def own_bucket(seaweedfs: SeaweedFS) -> str:
    """One bucket for all of these tests: each bucket takes a volume in SeaweedFS, whose number is limited."""
    return seaweedfs.create_bucket(f"s3-faults-{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="module")
def direct(seaweedfs: SeaweedFS) -> S3Client:
    """A client that bypasses the faults."""
    return seaweedfs.client()


@pytest.fixture
def bucket(own_bucket: str, direct: S3Client) -> str:
    """The bucket, emptied of what an earlier test left."""
    for entry in direct.list_objects_v2(Bucket=own_bucket).get("Contents", []):
        direct.delete_object(Bucket=own_bucket, Key=entry["Key"])
    return own_bucket


@pytest.fixture
def proxy(running: S3FaultProxy) -> S3FaultProxy:
    running.clear()
    return running


@pytest.fixture(autouse=True)
def _connections(monkeypatch, getimg_default, seaweedfs: SeaweedFS, proxy: S3FaultProxy):
    connection = json.loads(proxy.aws_connection(seaweedfs.aws_connection()))
    connection["extra"]["config_kwargs"] |= {
        "retries": {"total_max_attempts": ATTEMPTS},
        "connect_timeout": 2,
        "read_timeout": 2,
    }
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    # Shorter pauses between attempts, to save time; their number stays the same.
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr(copier, "BACKOFF_FIRST", 0.01)


class Bench:
    """One file of a generation, and the operator that copies it into an empty bucket."""

    def __init__(
        self, simulator: GetimgSimulator, proxy: S3FaultProxy, client: S3Client, bucket: str, context: Any
    ) -> None:
        self.proxy = proxy
        self.bucket = bucket
        self.client = client
        self._simulator = simulator
        self._context = context

    def generate(self, size: int = 0) -> dict[str, Any]:
        self._simulator.settings(file_size=size)
        with GetimgClient(self._simulator.api_key, base_url=self._simulator.url) as client:
            request = ImageRequest.checked(model="seedream-5-lite", prompt="A red fox")
            return client.generate_image(request).to_json()

    def transfer(self, generation: Any, *, try_number: int = 1, **fields: Any) -> list[dict[str, Any]]:
        operator = TransferToS3Operator(
            task_id="save", generation=generation, s3_bucket=self.bucket, **({"s3_key": KEY} | fields)
        )
        return operator.execute(self._context(try_number=try_number))

    def key(self, response: dict[str, Any]) -> str:
        return f"{response['id']}-0.jpg"

    def stored(self) -> dict[str, bytes]:
        """Return all objects of the bucket, after checking that each write was one request for a whole object."""
        writes = {request.operation for request in self.proxy.requests if request.method in ("PUT", "POST")}
        assert writes <= {WRITE}
        objects = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {
            entry["Key"]: self.client.get_object(Bucket=self.bucket, Key=entry["Key"])["Body"].read()
            for entry in objects
        }

    def check_saved(self, response: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Check that the bucket holds only this file, and that its row matches it."""
        content = bytes_of(response)
        assert self.stored() == {self.key(response): content}
        [row] = rows
        head = self.client.head_object(Bucket=self.bucket, Key=self.key(response))
        assert (row["key"], row["etag"]) == (self.key(response), head["ETag"].strip('"'))
        assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())

    def failure(
        self,
        response: dict[str, Any],
        kind: type[errors.GetimgError] = errors.StoreRefusedError,
        **fields: Any,
    ) -> str:
        """Return the message of a transfer that fails, after checking the error and its bill."""
        with pytest.raises(kind) as caught:
            self.transfer(response, **fields)
        error = caught.value
        assert type(error) is kind
        assert str(error) == (
            f"Generation {response['id']} was billed (0.04 USD) and is not saved. {error.message}"
        )
        assert (error.billed, str(error.cost), error.generation_ids) == ("yes", "0.04", (response["id"],))
        assert "sig=" not in str(error)
        assert "\n" not in str(error)
        assert f"s3://{self.bucket}/{self.key(response)}" in error.message
        return error.message


@pytest.fixture
def bench(simulator: GetimgSimulator, proxy: S3FaultProxy, direct: S3Client, bucket: str, context) -> Bench:
    return Bench(simulator, proxy, direct, bucket, context)


def bytes_of(response: dict[str, Any]) -> bytes:
    return httpx.get(response["data"][0]["url"], trust_env=False).raise_for_status().content


def downloads_are_forbidden(simulator: GetimgSimulator) -> None:
    simulator.faults.add({"on": "download", "kind": "status", "status": 403, "times": ALWAYS})


class TestWithoutFaults:
    @each_size
    @pytest.mark.parametrize("if_exists", ["skip", "replace", "fail"])
    def test_object_is_written_once_and_replace_sends_no_head_request(self, proxy, bench, size, if_exists):
        response = bench.generate(size)
        bench.check_saved(response, bench.transfer(response, if_exists=if_exists))
        assert proxy.operations() == [*([] if if_exists == "replace" else ["HeadObject"]), WRITE]
        sent = proxy.requests[-1]
        assert sent.headers.get("if-none-match") == (None if if_exists == "replace" else "*")
        checksum = hashlib.sha256(bytes_of(response)).digest()
        assert base64.b64decode(sent.headers["x-amz-checksum-sha256"]) == checksum
        assert int(sent.headers["content-length"]) == sent.body_bytes == len(bytes_of(response))
        assert sent.headers["content-type"] == "image/jpeg"

    @pytest.mark.parametrize(
        ("found", "content_type"), [("png", "image/png"), ("svg", "application/octet-stream")]
    )
    def test_content_type_is_detected_from_the_bytes(self, proxy, simulator, bench, found, content_type):
        response = bench.generate()
        simulator.faults.add({"on": "download", "kind": "file", "bytes": found, "times": ALWAYS})
        [row] = bench.transfer(response)
        assert proxy.requests[-1].headers["content-type"] == row["mime_type"] == content_type

    @each_size
    @pytest.mark.parametrize("if_exists", ["skip", "replace", pytest.param("fail", marks=long)])
    def test_retry_writes_nothing_unless_if_exists_is_replace(self, proxy, bench, size, if_exists):
        response = bench.generate(size)
        first = bench.transfer(response, if_exists=if_exists)
        proxy.clear()
        second = bench.transfer(response, if_exists=if_exists, try_number=2)
        assert proxy.operations() == ([WRITE] if if_exists == "replace" else ["HeadObject"])
        assert first == second
        bench.check_saved(response, second)


class TestRefusedByS3:
    @each_size
    def test_denied_write_fails_and_a_retry_saves_the_file_once_it_is_permitted(self, proxy, bench, size):
        response = bench.generate(size)
        proxy.set_faults([{"kind": "status", "code": "AccessDenied", "operation": WRITE}])
        assert bench.failure(response) == (
            f"S3 refused to store s3://{bench.bucket}/{bench.key(response)} (403 AccessDenied): The fault proxy plays "
            "AccessDenied."
        )
        assert bench.stored() == {}
        bench.check_saved(response, bench.transfer(response, try_number=2))

    @each_size
    def test_missing_bucket_is_named_in_the_error(self, proxy, bench, size):
        response = bench.generate(size)
        proxy.set_faults([{"kind": "status", "code": "NoSuchBucket", "operation": WRITE}])
        assert bench.failure(response) == (
            f"S3 could not store s3://{bench.bucket}/{bench.key(response)}: there is no bucket '{bench.bucket}'."
        )
        assert bench.stored() == {}

    @each_size
    def test_bad_digest_fails_and_stores_nothing(self, proxy, bench, size):
        response = bench.generate(size)
        proxy.set_faults([{"kind": "status", "code": "BadDigest", "operation": WRITE, "times": ALWAYS}])
        assert "(400 BadDigest)" in bench.failure(response, errors.ObjectStoreError)
        assert bench.stored() == {}

    @each_size
    def test_body_corrupted_in_transit_is_rejected_by_the_server(self, proxy, bench, size):
        # Only the server can find this: the body is not signed, but its checksum is.
        response = bench.generate(size)
        proxy.set_faults([{"kind": "corrupt", "operation": WRITE, "times": ALWAYS}])
        assert "(400 " in bench.failure(response, errors.ObjectStoreError)
        sent = next(request for request in proxy.requests if request.operation == WRITE)
        assert sent.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert sent.upstream_status == 400
        assert bench.stored() == {}

    @each_size
    @pytest.mark.parametrize("if_exists", ["skip", SELDOM[-1]])
    def test_file_is_saved_by_a_conditional_write_if_the_head_request_is_denied(
        self, proxy, bench, size, if_exists
    ):
        response = bench.generate(size)
        proxy.set_faults(
            [{"kind": "status", "code": "AccessDenied", "operation": "HeadObject", "times": ALWAYS}]
        )
        bench.check_saved(response, bench.transfer(response, if_exists=if_exists))
        assert proxy.requests[-1].headers["if-none-match"] == "*"

    @each_size
    @pytest.mark.parametrize("if_exists", ["skip", SELDOM[-1]])
    def test_object_that_cannot_be_read_is_not_overwritten(self, proxy, bench, size, if_exists):
        response = bench.generate(size)
        bench.client.put_object(Bucket=bench.bucket, Key=bench.key(response), Body=b"theirs")
        proxy.set_faults(
            [{"kind": "status", "code": "AccessDenied", "operation": "HeadObject", "times": ALWAYS}]
        )
        message = bench.failure(response, errors.ObjectExistsError, if_exists=if_exists)
        assert "already exists, but cannot be read (s3:GetObject denied)" in message
        assert bench.stored() == {bench.key(response): b"theirs"}

    def test_no_write_is_sent_if_the_head_request_fails(self, proxy, bench):
        response = bench.generate()
        proxy.set_faults([{"kind": "status", "status": 500, "operation": "HeadObject", "times": ALWAYS}])
        assert bench.failure(response, errors.ObjectStoreError).startswith(
            "S3 refused to read the metadata of s3://"
        )
        assert set(proxy.operations()) == {"HeadObject"}

    def test_refused_objects_do_not_stop_the_others(self, proxy, bench, capsys):
        responses = [bench.generate(size) for size in (0, 0, LARGE, LARGE)]
        refused = (responses[1]["id"], responses[3]["id"])
        proxy.set_faults(
            [
                {
                    "kind": "status",
                    "code": "AccessDenied",
                    "method": "PUT",
                    "key_contains": id_,
                    "times": ALWAYS,
                }
                for id_ in refused
            ]
        )
        with pytest.raises(
            errors.TransferIncompleteError,
            match=r"^2 of 4 files are saved; the other 2, billed at 0\.08 USD, are not\. S3 ref.*And 1 more, see the table",
        ):
            bench.transfer(responses)
        assert bench.stored() == {bench.key(response): bytes_of(response) for response in responses[::2]}
        log = capsys.readouterr().out
        assert (log.count("| yes "), log.count("| no "), log.count("sig=")) == (2, 2, 0)


class TestOverloadedStore:
    @each_size
    def test_write_that_is_throttled_once_is_retried(self, proxy, bench, size):
        response = bench.generate(size)
        proxy.set_faults([{"kind": "status", "code": "SlowDown", "operation": WRITE}])
        bench.check_saved(response, bench.transfer(response))
        assert proxy.operations().count(WRITE) == 2

    @each_size
    def test_write_that_is_always_throttled_fails_and_stores_nothing(self, proxy, bench, size):
        response = bench.generate(size)
        proxy.set_faults([{"kind": "status", "code": "SlowDown", "operation": WRITE, "times": ALWAYS}])
        assert "(503 SlowDown)" in bench.failure(response, errors.ObjectStoreError)
        assert proxy.operations().count(WRITE) == ATTEMPTS
        proxy.clear()
        assert bench.stored() == {}

    @each_size
    def test_slow_requests_succeed(self, proxy, bench, size):
        response = bench.generate(size)
        proxy.set_faults(
            [{"kind": "slow", "seconds": 0.5, "operation": name} for name in ("HeadObject", WRITE)]
        )
        bench.check_saved(response, bench.transfer(response))

    @each_size
    def test_write_that_times_out_is_retried(self, proxy, bench, size):
        response = bench.generate(size)
        proxy.set_faults([{"kind": "hang", "operation": WRITE}])
        bench.check_saved(response, bench.transfer(response))


class TestResetMidUpload:
    @each_size
    @pytest.mark.parametrize("if_exists", ["skip", SELDOM[0]])
    def test_upload_that_is_reset_once_is_sent_again(self, proxy, bench, size, if_exists):
        response = bench.generate(size)
        proxy.set_faults([{"kind": "reset_mid_upload", "operation": WRITE}])
        bench.check_saved(response, bench.transfer(response, if_exists=if_exists))
        assert proxy.faults == []

    @each_size
    def test_upload_that_is_always_reset_stores_nothing_and_a_retry_saves_the_file(self, proxy, bench, size):
        response = bench.generate(size)
        proxy.set_faults([{"kind": "reset_mid_upload", "operation": WRITE, "times": ALWAYS}])
        assert bench.failure(response, errors.ObjectStoreError).startswith(
            f"S3 could not store s3://{bench.bucket}/{bench.key(response)}: "
        )
        proxy.clear()
        assert bench.stored() == {}
        bench.check_saved(response, bench.transfer(response, try_number=2))


class TestLostResponse:
    @each_size
    @pytest.mark.parametrize("if_exists", ["skip", *SELDOM])
    @pytest.mark.parametrize("kind", ["lost_response", pytest.param("reset_mid_response", marks=long)])
    def test_object_is_stored_once_if_the_response_is_lost_once(self, proxy, bench, size, if_exists, kind):
        response = bench.generate(size)
        proxy.set_faults([{"kind": kind, "operation": WRITE}])
        bench.check_saved(response, bench.transfer(response, if_exists=if_exists))
        assert proxy.faults == []

    @each_size
    @pytest.mark.parametrize("if_exists", ["skip", SELDOM[-1]])
    def test_retry_finds_the_object_without_a_download_if_every_response_was_lost(
        self, proxy, simulator, bench, size, if_exists
    ):
        response = bench.generate(size)
        content = bytes_of(response)
        proxy.set_faults([{"kind": "lost_response", "operation": WRITE, "times": ALWAYS}])
        bench.failure(response, errors.ObjectStoreError, if_exists=if_exists)
        proxy.clear()
        assert bench.stored() == {bench.key(response): content}
        downloads_are_forbidden(simulator)
        rows = bench.transfer(response, try_number=2, if_exists=if_exists)
        simulator.faults.clear()
        bench.check_saved(response, rows)
        assert WRITE not in proxy.operations()


class TestAnotherWriter:
    """An object that appears between the transfer's check of the key and its write."""

    @pytest.fixture
    def rival(self, bench: Bench, monkeypatch):
        """Return a function that lets another writer write an object right before the transfer does."""

        def write(key: str, body: bytes) -> None:
            put = S3Store.put

            def put_second(*args: Any, **kwargs: Any) -> str:
                bench.client.put_object(Bucket=bench.bucket, Key=key, Body=body)
                return put(*args, **kwargs)

            monkeypatch.setattr(S3Store, "put", put_second)

        return write

    @each_size
    def test_skip_accepts_identical_content(self, proxy, bench, rival, size):
        response = bench.generate(size)
        rival(bench.key(response), bytes_of(response))
        bench.check_saved(response, bench.transfer(response))
        assert 412 in [request.status for request in proxy.requests]

    @each_size
    def test_skip_fails_on_different_content_and_names_both_hashes(self, bench, rival, size):
        response = bench.generate(size)
        rival(bench.key(response), b"theirs")
        message = bench.failure(response, errors.ObjectExistsError)
        theirs, ours = (hashlib.sha256(body).hexdigest() for body in (b"theirs", bytes_of(response)))
        assert f"its SHA-256 is {theirs}, that of file 0 of generation {response['id']} is {ours}." in message
        assert bench.stored() == {bench.key(response): b"theirs"}

    @each_size
    def test_fail_raises_even_if_the_content_is_identical(self, bench, rival, size):
        response = bench.generate(size)
        rival(bench.key(response), bytes_of(response))
        message = bench.failure(response, errors.ObjectExistsError, if_exists="fail")
        assert "already exists, and if_exists is 'fail'" in message
        assert bench.stored() == {bench.key(response): bytes_of(response)}

    @pytest.mark.parametrize("if_exists", ["skip", "fail"])
    def test_object_is_not_overwritten_if_the_store_refuses_conditions(self, proxy, bench, rival, if_exists):
        response = bench.generate()
        rival(bench.key(response), b"theirs")
        proxy.set_faults([{"kind": "status", "status": 501, "code": "NotImplemented", "operation": WRITE}])
        bench.failure(response, errors.ObjectExistsError, if_exists=if_exists)
        assert bench.stored() == {bench.key(response): b"theirs"}

    @pytest.mark.parametrize(("times", "conditions"), [(1, ["*", "*"]), (2, ["*", "*", None])])
    @each_size
    def test_file_is_saved_after_a_412_if_the_key_is_free(self, proxy, bench, size, times, conditions):
        response = bench.generate(size)
        proxy.set_faults([{"kind": "status", "status": 412, "operation": WRITE, "times": times}])
        bench.check_saved(response, bench.transfer(response))
        writes = [request for request in proxy.requests if request.operation == WRITE]
        # The other writer's object may have come and gone; a store that doesn't know the condition answers so each time.
        assert [request.headers.get("if-none-match") for request in writes] == conditions

    @each_size
    def test_write_is_retried_after_a_409_conflict(self, proxy, bench, size):
        response = bench.generate(size)
        proxy.set_faults([{"kind": "status", "code": "ConditionalRequestConflict", "operation": WRITE}])
        bench.check_saved(response, bench.transfer(response))


class TestStoreWithoutConditionalWrites:
    @each_size
    @pytest.mark.parametrize("if_exists", ["skip", SELDOM[-1]])
    def test_write_is_repeated_without_the_condition_that_the_store_refuses(
        self, proxy, bench, size, if_exists
    ):
        response = bench.generate(size)
        proxy.set_faults([{"kind": "status", "status": 501, "code": "NotImplemented", "operation": WRITE}])
        bench.check_saved(response, bench.transfer(response, if_exists=if_exists))
        asked = [request for request in proxy.requests if request.operation == WRITE]
        assert [request.headers.get("if-none-match") for request in asked] == ["*", None]
