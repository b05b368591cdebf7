# SPDX-License-Identifier: Apache-2.0
"""
A batch that can't save must not pay, and images that were paid but not saved stay owed, even after a Clear.

A real S3 server runs behind a proxy that injects errors; the simulator's ledger shows what was billed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.batch import pipeline
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.version_compat import RetryAction
from tests.support.s3_faults import S3FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS

MODEL = "seedream-5-lite"
PRICE = Decimal("0.04")
FILE_BYTES = 100_000
# A key that is known beforehand, and one that depends on the response.
BY_ROW, BY_ID = "{row:03}.{extension}", "{row:03}-{generation_id}.{extension}"
ACCESS_DENIED = {"kind": "status", "code": "AccessDenied", "operation": "PutObject", "times": 9999}
IMAGES_DENIED = ACCESS_DENIED | {"key_contains": ".jpg"}
MANIFEST_DENIED = ACCESS_DENIED | {"key_contains": ".jsonl"}
PAGES = {"on": "download", "kind": "file", "bytes": "html", "times": 9999}
CLEARED = {"try_number": 5, "max_tries": 7}
CLEARED_AGAIN = {"try_number": 9, "max_tries": 11}


class Batches:
    """Batches of one task into one bucket: the tries share the task's state."""

    def __init__(
        self,
        simulator: GetimgSimulator,
        proxy: S3FaultProxy,
        client: Any,
        bucket: str,
        context: Callable[..., Any],
    ) -> None:
        self.simulator = simulator
        self.proxy = proxy
        self.client = client
        self.bucket = bucket
        self._context = context

    def run(
        self, rows: int | list[Any] | str = 20, *, try_number: int = 1, max_tries: int = 3, **fields: Any
    ) -> dict[str, Any]:
        requests = [{"prompt": f"Picture {n}"} for n in range(rows)] if isinstance(rows, int) else rows
        given = {"s3_bucket": self.bucket, "s3_key": BY_ROW, "concurrency": 4, "defaults": {"model": MODEL}}
        operator = GenerateImagesToS3Operator(task_id="generate", requests=requests, **(given | fields))
        return operator.execute(self._context(try_number=try_number, max_tries=max_tries))

    def failure(self, *args: Any, **fields: Any) -> errors.BatchIncompleteError:
        """Run a try that fails, and return its error."""
        self._context.xcoms.clear()
        with pytest.raises(errors.BatchIncompleteError) as caught:
            self.run(*args, **fields)
        assert "sig=" not in str(caught.value)
        return caught.value

    @property
    def pushed(self) -> dict[str, Any]:
        """Return the summary that a failed try pushed to XCom."""
        return self._context.xcoms["return_value"]

    def refuse(self, *faults: dict[str, Any]) -> None:
        self.proxy.set_faults(faults)

    def posts(self) -> int:
        return len(self.simulator.ledger)

    def paid(self) -> Counter[str]:
        """Return how often each prompt was billed."""
        return Counter(post["prompt"] for post in self.simulator.ledger.raw()["posts"] if post["billed"])

    def bill(self) -> Decimal:
        return PRICE * self.paid().total()

    def saved(self) -> set[str]:
        """Return the prompts of the images that are in S3, by the ids in their metadata."""
        prompts = {post["id"]: post["prompt"] for post in self.simulator.ledger.raw()["posts"]}
        return {prompts[generation_id] for generation_id in self.objects().values()}

    def objects(self) -> dict[str, str]:
        """Return the generation of each image in S3, by key."""
        listed = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        keys = [entry["Key"] for entry in listed if entry["Key"].endswith(".jpg")]
        return {
            key: self.client.head_object(Bucket=self.bucket, Key=key)["Metadata"]["getimg-generation-id"]
            for key in keys
        }

    def manifest(self) -> list[dict[str, Any]]:
        """Return the manifest's lines."""
        content = self.client.get_object(
            Bucket=self.bucket,
            Key="manifests/a_dag/manual__2026-01-01T00_00_00_00_00/a_task.jsonl",
        )["Body"].read()
        return [json.loads(line) for line in content.splitlines()]


@pytest.fixture(scope="module")
def proxy(seaweedfs: SeaweedFS) -> Iterator[S3FaultProxy]:
    with S3FaultProxy(seaweedfs.endpoint_url) as started:
        yield started


@pytest.fixture
def connection(proxy: S3FaultProxy, seaweedfs: SeaweedFS) -> dict[str, Any]:
    """Return an AWS connection through the proxy, without boto3's own retries."""
    made: dict[str, Any] = json.loads(proxy.aws_connection(seaweedfs.aws_connection()))
    made["extra"]["config_kwargs"]["retries"] = {"total_max_attempts": 1}
    return made


@pytest.fixture
def batches(
    monkeypatch, getimg_default, simulator, proxy, connection, seaweedfs, bucket, context
) -> Iterator[Batches]:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    simulator.settings(file_size=FILE_BYTES)
    yield Batches(simulator, proxy, seaweedfs.client(), bucket, context)
    proxy.clear()


def decision(error: BaseException, try_number: int = 1) -> RetryAction:
    return RETRY_POLICY.evaluate(error, try_number, 3).action


def begins(error: BaseException, saved: int, rows: int, billed: int) -> bool:
    """Return whether a message begins with the rows and the bill."""
    were = "was" if billed == 1 else "were"
    cost = PRICE * billed if billed else 0
    return str(error).startswith(
        f"{saved} of {rows} rows are saved, {billed} {were} billed ({cost} USD in total)"
    )


KMS = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/images"}


class TestWriteCheck:
    """Before the first request, a batch checks that S3 will store its images and its manifest."""

    def check(
        self, batches: Batches, said: str, *, action: RetryAction = RetryAction.FAIL, **fields: Any
    ) -> None:
        error = batches.failure(6, **fields)
        assert batches.posts() == 0
        assert batches.simulator.ledger.total_cost == 0
        start = (
            "0 of 6 rows are saved, 0 were billed (0 USD in total), 6 were not sent. The batch was stopped: "
        )
        assert str(error).startswith(start + said)
        assert str(error).endswith(" Nothing was billed.")
        assert decision(error) is action
        assert (error.billed, error.cost, error.generation_ids) == ("no", 0, ())
        assert batches.pushed == {
            "requested": 6,
            "saved": 0,
            "reused": 0,
            "failed": 0,
            "not_sent": 6,
            "total_cost": 0.0,
            "manifest": None,
            "aws_conn_id": "aws_default",
            "uris": [],
        }

    @pytest.mark.parametrize(
        ("fault", "extra_args"),
        [
            ({"code": "AccessDenied"}, None),
            (
                {"code": "AccessControlListNotSupported", "status": 400, "header": "x-amz-acl: public-read"},
                {"ACL": "public-read"},
            ),
            ({"code": "AccessDenied", "header": "x-amz-server-side-encryption: aws:kms"}, KMS),
            (
                {
                    "code": "KMS.NotFoundException",
                    "status": 400,
                    "header": "x-amz-server-side-encryption-aws-kms-key-id: alias/images",
                },
                KMS,
            ),
            ({"code": "AccessDenied", "header": "x-amz-tagging"}, {"Tagging": "team=art"}),
            (
                {"code": "InvalidStorageClass", "status": 400, "header": "x-amz-storage-class: GLACIER_IR"},
                {"StorageClass": "GLACIER_IR"},
            ),
        ],
        ids=["no s3:PutObject", "ACLs disabled", "KMS permission", "KMS key", "no tagging", "storage class"],
    )
    def test_write_rejected_by_s3_stops_the_batch_before_anything_is_billed(self, batches, fault, extra_args):
        batches.refuse({"kind": "status", "operation": "PutObject", "times": 9999} | fault)
        self.check(batches, "S3 refused to store s3://", extra_args=extra_args)
        assert batches.proxy.operations().count("PutObject") == 1

    def test_wrong_aws_secret_stops_the_batch_before_anything_is_billed(
        self, batches, connection, monkeypatch
    ):
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection | {"password": "wrong"}))
        self.check(batches, "S3 refused to store s3://")

    def test_missing_aws_credentials_stop_the_batch_before_anything_is_billed(
        self, batches, connection, monkeypatch
    ):
        del connection["login"], connection["password"]
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        self.check(
            batches,
            "The AWS connection 'aws_default' has no credentials for S3",
            # A metadata service may respond the next time.
            action=RetryAction.DEFAULT,
        )

    def test_missing_bucket_stops_the_batch_before_anything_is_billed(self, batches):
        self.check(batches, "S3 could not store s3://there-is-none/", s3_bucket="there-is-none")

    @pytest.mark.parametrize("place", ["another bucket", "another folder"])
    def test_images_location_is_checked_too_if_the_manifest_is_stored_elsewhere(
        self, batches, seaweedfs, place
    ):
        other = "s3://there-is-none" if place == "another bucket" else f"s3://{batches.bucket}/images"
        self.check_elsewhere(batches, f"s3://{batches.bucket}/lists/night.jsonl", f"{other}/{BY_ROW}")

    def check_elsewhere(self, batches: Batches, manifest_key: str, s3_key: str) -> None:
        batches.refuse(ACCESS_DENIED | {"key_contains": "images/"})
        error = batches.failure(6, manifest_key=manifest_key, s3_key=s3_key, s3_bucket=None)
        assert begins(error, 0, 6, 0)
        assert batches.posts() == 0
        assert decision(error) is RetryAction.FAIL
        assert ".getimg-write-check" in str(error)

    def test_check_beside_the_images_leaves_no_object_behind(self, batches):
        fields = {"manifest_key": "lists/night.jsonl", "s3_key": "images/{row}.{extension}"}
        assert batches.run(2, **fields)["saved"] == 2
        listed = batches.client.list_objects_v2(Bucket=batches.bucket)["Contents"]
        assert [entry["Key"] for entry in listed] == ["images/0.jpg", "images/1.jpg", "lists/night.jsonl"]

    def test_temporary_s3_error_is_retried_before_anything_is_billed(self, batches):
        batches.refuse(ACCESS_DENIED | {"code": "SlowDown", "times": 1})
        error = batches.failure(6)
        assert begins(error, 0, 6, 0)
        assert batches.posts() == 0
        assert decision(error) is not RetryAction.FAIL
        assert batches.run(6, try_number=2)["saved"] == 6

    def test_failure_in_a_retry_reports_the_bill_of_earlier_tries(self, batches):
        batches.refuse(IMAGES_DENIED | {"skip": 2})
        first = batches.failure(20)
        paid = batches.paid().total()
        assert begins(first, 2, 20, paid)
        batches.refuse(ACCESS_DENIED)
        error = batches.failure(20, try_number=2)
        assert begins(error, 2, 20, paid)
        assert batches.paid().total() == paid
        assert (error.billed, error.cost, len(error.generation_ids)) == ("yes", batches.bill(), paid)
        assert (batches.pushed["saved"], batches.pushed["total_cost"]) == (2, float(batches.bill()))


class TestSaveFailureMidway:
    """A save that fails midway stops the sending at once, and paid images are not paid for again."""

    @pytest.mark.parametrize("concurrency", [1, 4])
    @pytest.mark.parametrize("saved", [0, 1, 6])
    def test_stops_sending_at_once(self, batches, saved, concurrency):
        batches.simulator.settings(latency=0.3)
        batches.refuse(IMAGES_DENIED | {"skip": saved})
        error = batches.failure(40, concurrency=concurrency)
        paid = batches.paid().total()
        print(f"{paid} paid, {saved} of them saved")
        # Until the first image is saved, only the first requests in flight are paid for.
        assert saved < paid <= (concurrency if not saved else saved + 3 * concurrency)
        assert begins(error, saved, 40, paid)
        assert "The batch was stopped: S3 refused to store s3://" in str(error)
        assert decision(error) is RetryAction.FAIL
        outcomes = Counter(line["outcome"] for line in batches.manifest())
        assert outcomes == Counter({"saved": saved, "failed": paid - saved, "not_sent": 40 - paid})
        assert {line["cost"] for line in batches.manifest() if line["outcome"] != "not_sent"} == {
            float(PRICE)
        }

    def test_is_in_the_bill_of_a_task_that_ends_before_its_upload(self, batches, monkeypatch):
        for name in ("GRACE_SECONDS", "SAVE_SECONDS", "_END_SECONDS"):
            monkeypatch.setattr(pipeline, name, 0.3)
        batches.refuse({"kind": "hang", "operation": "PutObject", "key_contains": ".jpg", "seconds": 30})

        timeouts = iter([AirflowTaskTimeout("time is up")])

        def time_out_during_upload(*_: object, **__: object) -> None:
            if any(".jpg" in request.path for request in batches.proxy.requests):
                for timeout in timeouts:
                    raise timeout

        monkeypatch.setattr("airflow_provider_getimg.batch.progress.Progress.report", time_out_during_upload)
        with pytest.raises(AirflowTaskTimeout):
            batches.run(1)
        assert (batches.pushed["failed"], batches.pushed["not_sent"]) == (1, 0)
        assert batches.bill() == PRICE

    def test_is_reported_with_rows_cost_and_generation_ids(self, batches):
        batches.refuse(IMAGES_DENIED | {"skip": 3})
        error = batches.failure(20)
        posts = [post for post in batches.simulator.ledger.raw()["posts"] if post["billed"]]
        assert error.billed == "yes"
        assert error.cost == PRICE * len(posts)
        assert sorted(error.generation_ids) == sorted(post["id"] for post in posts)
        lost = [failure for failure in error.failures if failure.generation_ids]
        assert len(lost) == len(posts) - 3
        assert {(failure.billed, failure.cost) for failure in lost} == {("yes", PRICE)}
        summary = batches.pushed
        assert (summary["requested"], summary["saved"]) == (20, 3)
        assert (summary["failed"], summary["not_sent"]) == (len(posts) - 3, 20 - len(posts))
        assert summary["total_cost"] == pytest.approx(float(error.cost))
        assert summary["manifest"].startswith(f"s3://{batches.bucket}/manifests/")
        assert len(summary["uris"]) == 3

    @pytest.mark.parametrize(
        "fault", [IMAGES_DENIED, IMAGES_DENIED | {"code": "InternalError"}], ids=["for good", "passing"]
    )
    def test_prevents_new_payments_in_retries_and_clears_while_it_persists(self, batches, fault):
        batches.refuse(fault | {"skip": 2})
        batches.failure(20)
        paid = batches.paid()
        for try_number in (2, 3, 4):
            # As under a retry policy that retries everything.
            batches.refuse(fault)
            assert begins(batches.failure(20, try_number=try_number), 2, 20, paid.total())
        for clear in (CLEARED, CLEARED_AGAIN):
            batches.refuse(fault)
            batches.failure(20, if_exists="replace", **clear)
        assert batches.paid() == paid

    def test_prevents_new_requests_in_a_retry_while_downloads_fail(self, batches):
        # Longer than a try waits.
        not_now = {"status": 503, "headers": {"Retry-After": "3000"}, "times": 9999}
        batches.simulator.faults.add({"on": "download", "kind": "status", **not_now})
        batches.simulator.balance = str(2 * PRICE)
        batches.failure(8, concurrency=1)
        batches.simulator.balance = "100"
        assert batches.posts() == 3
        error = batches.failure(8, concurrency=1, try_number=2)
        assert "The batch was stopped: The download of file 0 of generation" in str(error)
        assert batches.posts() == 3

    def test_is_resumed_by_the_next_try_without_paying_twice_once_s3_recovers(self, batches):
        batches.refuse(IMAGES_DENIED | {"skip": 5})
        batches.failure(20)
        batches.refuse()
        summary = batches.run(20, try_number=2)
        assert (summary["saved"], summary["failed"]) == (20, 0)
        assert set(batches.paid().values()) == {1}
        assert summary["total_cost"] == pytest.approx(float(20 * PRICE))

    def test_manifest_that_cannot_be_written_fails_the_try_but_loses_no_image(self, batches):
        batches.refuse(MANIFEST_DENIED | {"skip": 1})
        error = batches.failure(6)
        assert begins(error, 6, 6, 6)
        assert "The manifest could not be written: S3 refused to store s3://" in str(error)
        assert decision(error) is RetryAction.FAIL
        assert (batches.pushed["saved"], batches.pushed["manifest"]) == (6, None)
        assert len(batches.saved()) == 6
        # A retry sends nothing, and fails as long as the manifest can't be written.
        batches.refuse(MANIFEST_DENIED | {"code": "SlowDown"})
        again = batches.failure(6, try_number=2)
        assert begins(again, 6, 6, 6)
        batches.refuse()
        assert batches.run(6, try_number=3)["reused"] == 6
        assert batches.posts() == 6
        assert {line["outcome"] for line in batches.manifest()} == {"reused"}


class TestTryThatCannotStart:
    """A try that fails before its first request still reports the bill."""

    @pytest.fixture(params=["getimg_conn_id", "aws_conn_id"])
    def fields(self, request, monkeypatch) -> dict[str, str]:
        """Return the field of a connection that is missing or unusable."""
        monkeypatch.setenv("AIRFLOW_CONN_BROKEN", '{"conn_type": "aws", "extra": {"role_arn": 7}}')
        return {request.param: "there_is_none" if request.param == "getimg_conn_id" else "broken"}

    def test_reports_that_nothing_was_billed_if_it_is_the_first(self, batches, context, fields):
        context.xcoms.clear()
        with pytest.raises(errors.ConnectionConfigError, match=r"Nothing was billed\.$"):
            batches.run(4, **fields)
        assert batches.posts() == 0
        assert (batches.pushed["requested"], batches.pushed["not_sent"]) == (4, 4)
        assert batches.pushed["total_cost"] == 0

    def test_reports_the_bill_of_earlier_tries(self, batches, fields):
        batches.refuse(IMAGES_DENIED | {"skip": 2})
        batches.failure(12)
        batches.refuse()
        paid = batches.paid().total()
        error = batches.failure(12, try_number=2, **fields)
        assert begins(error, 2, 12, paid)
        assert (error.billed, error.cost) == ("yes", PRICE * paid)
        assert len(error.generation_ids) == paid
        assert "The batch was stopped: " in str(error)
        assert "Nothing was billed" not in str(error)
        # A connection that Airflow doesn't find may be back the next time.
        assert decision(error) is (RetryAction.DEFAULT if "getimg_conn_id" in fields else RetryAction.FAIL)
        assert batches.pushed["saved"] == 2
        assert batches.pushed["total_cost"] == pytest.approx(float(PRICE * paid))
        assert batches.run(12, **CLEARED)["saved"] == 12
        assert set(batches.paid().values()) == {1}

    @pytest.mark.parametrize("code", ["SlowDown", "NoSuchKey"])
    def test_reports_the_bill_of_earlier_tries_if_the_requests_file_cannot_be_read(self, batches, code):
        content = "\n".join(json.dumps({"prompt": f"Picture {n}"}) for n in range(6)).encode()
        batches.client.put_object(Bucket=batches.bucket, Key="requests.jsonl", Body=content)
        requests = f"s3://{batches.bucket}/requests.jsonl"
        batches.refuse(IMAGES_DENIED | {"skip": 1})
        batches.failure(requests)
        paid = batches.paid().total()
        status = 503 if code == "SlowDown" else 404
        batches.refuse({"kind": "status", "code": code, "status": status, "operation": "GetObject"})
        with pytest.raises(errors.GetimgError) as caught:
            batches.run(requests, try_number=2)
        error = caught.value
        assert str(error).startswith(
            f"{paid} generations were billed ({PRICE * paid} USD together), and {paid - 1} "
        )
        assert " not saved. requests (s3://" in str(error)
        assert (error.billed, error.cost, len(error.generation_ids)) == ("yes", PRICE * paid, paid)
        assert "Nothing was billed" not in str(error)
        batches.refuse()
        assert batches.run(requests, **CLEARED)["saved"] == 6
        assert set(batches.paid().values()) == {1}


class TestClear:
    """A Clear may pay again for delivered images, but never for owed ones."""

    @pytest.mark.parametrize(
        ("key", "if_exists", "delivered_again"),
        [(BY_ROW, "skip", 0), (BY_ROW, "replace", 1), (BY_ID, "skip", 1)],
        ids=["skip", "replace", "by id"],
    )
    def test_saves_owed_images_without_paying_again(self, batches, key, if_exists, delivered_again):
        fields = {"s3_key": key, "if_exists": if_exists}
        batches.refuse(IMAGES_DENIED | {"skip": 5})
        batches.failure(20, **fields)
        first = batches.paid()
        delivered = batches.saved()
        owed = set(first) - delivered
        assert len(delivered) == 5
        assert owed
        batches.refuse()
        summary = batches.run(20, **fields, **CLEARED)
        assert (summary["saved"], summary["failed"]) == (20, 0)
        assert len(batches.saved()) == 20
        for prompt, times in batches.paid().items():
            assert times == (1 + delivered_again if prompt in delivered else 1), prompt
        # Owed images and those generated since, but not those delivered before the Clear.
        assert summary["total_cost"] == pytest.approx(float(batches.bill() - 5 * PRICE))
        # Now all images are delivered.
        batches.run(20, **fields, **CLEARED_AGAIN)
        assert all(batches.paid()[prompt] == 1 + delivered_again for prompt in owed)

    def test_keeps_images_owed_if_it_cannot_save_them_either(self, batches):
        batches.refuse(IMAGES_DENIED | {"skip": 2})
        batches.failure(12, if_exists="replace")
        delivered, paid = batches.saved(), batches.paid()
        batches.refuse(ACCESS_DENIED)
        error = batches.failure(12, if_exists="replace", **CLEARED)
        # Images delivered before the Clear are not part of its bill.
        assert begins(error, 0, 12, paid.total() - 2)
        batches.refuse(IMAGES_DENIED)
        batches.failure(12, if_exists="replace", **CLEARED_AGAIN)
        assert batches.paid() == paid
        batches.refuse()
        assert batches.run(12, if_exists="replace", try_number=13, max_tries=15)["saved"] == 12
        assert {prompt for prompt, times in batches.paid().items() if times == 2} == delivered

    def test_keeps_regenerated_images_owed_if_it_cannot_save_them(self, batches):
        fields = {"if_exists": "replace"}
        assert batches.run(4, **fields)["saved"] == 4
        before = batches.objects()
        batches.refuse(IMAGES_DENIED)
        batches.failure(4, **fields, **CLEARED)
        paid = batches.paid().total()
        assert 4 < paid <= 8
        batches.refuse()
        summary = batches.run(4, **fields, **CLEARED_AGAIN)
        assert summary["saved"] == 4
        assert set(batches.paid().values()) == {2}
        assert not set(before.values()) & set(batches.objects().values())

    def test_is_resumed_by_its_own_retry_without_paying_again(self, batches):
        batches.refuse(IMAGES_DENIED | {"skip": 2})
        batches.failure(12)
        batches.refuse(IMAGES_DENIED | {"skip": 3, "code": "InternalError"})
        batches.failure(12, **CLEARED)
        batches.refuse()
        summary = batches.run(12, try_number=6, max_tries=7)
        assert summary["saved"] == 12
        assert set(batches.paid().values()) == {1}

    def test_does_not_count_owed_images_twice_against_max_cost(self, batches):
        fields = {"max_cost": str(12 * PRICE)}
        batches.refuse(IMAGES_DENIED | {"skip": 2})
        batches.failure(12, **fields)
        batches.refuse()
        assert batches.run(12, **fields, **CLEARED)["saved"] == 12


def expire(batches: Batches, store: Any, gone: int) -> None:
    """Make all recorded URLs expire, and the next downloads fail with a 403."""
    for key, value in store.values.items():
        store.values[key] = re.sub(r'"deletes_at": "[^"]+"', '"deletes_at": "2020-01-01T00:00:00Z"', value)
    batches.simulator.faults.add({"on": "download", "kind": "status", "status": 403, "times": gone})


class TestOwedImagesThatExpired:
    @pytest.fixture
    def owed(self, batches) -> int:
        """Pay for images without saving any, and return their number."""
        batches.refuse(IMAGES_DENIED)
        batches.failure(8)
        batches.refuse()
        return batches.paid().total()

    def test_are_regenerated_after_a_clear(self, batches, store, owed):
        expire(batches, store, owed)
        summary = batches.run(8, **CLEARED)
        assert (summary["saved"], batches.paid().total()) == (8, 8 + owed)
        assert len(batches.saved()) == 8

    def test_fail_a_retry_without_being_paid_again_while_other_rows_are_saved(self, batches, store, owed):
        expire(batches, store, owed)
        error = batches.failure(8, try_number=2)
        gone = [failure for failure in error.failures if isinstance(failure, errors.PaidFilesGoneError)]
        assert len(gone) == owed
        assert {failure.cost for failure in gone} == {PRICE}
        # The other rows are not held up.
        assert begins(error, 8 - owed, 8, 8)
        assert batches.paid().total() == 8
        assert decision(error) is RetryAction.FAIL
        batches.simulator.faults.add({"on": "download", "kind": "status", "status": 403, "times": owed})
        assert batches.run(8, **CLEARED)["saved"] == 8
        assert batches.paid().total() == 8 + owed

    def test_are_saved_if_the_server_still_has_the_files(self, batches, store, owed):
        expire(batches, store, 1)
        batches.simulator.faults.clear()
        assert batches.run(8, **CLEARED)["saved"] == 8
        assert set(batches.paid().values()) == {1}

    def test_fail_a_retry_and_are_regenerated_after_a_clear_if_deleted_early(self, batches, owed):
        batches.simulator.faults.add({"on": "download", "kind": "status", "status": 410, "times": owed})
        error = batches.failure(8, try_number=2)
        assert sum(isinstance(failure, errors.FileGoneError) for failure in error.failures) == owed
        assert set(batches.paid().values()) == {1}
        assert batches.run(8, **CLEARED)["saved"] == 8
        assert batches.paid().total() == 8 + owed

    def test_are_owed_again_if_they_are_regenerated_under_resubmit_but_not_saved(self, batches, store, owed):
        fields = {"on_unknown_outcome": "resubmit"}
        # The paid rows, which need not be the first ones.
        rows = [{"prompt": prompt} for prompt in batches.paid()]
        batches.simulator.faults.add({"on": "download", "kind": "status", "status": 410, "times": owed})
        batches.failure(rows, **fields, try_number=2)
        expire(batches, store, owed)
        batches.refuse(IMAGES_DENIED)
        # Paid again under "resubmit" until S3 denies a write, and not saved.
        batches.failure(rows, **fields, try_number=3)
        twice = {prompt for prompt, times in batches.paid().items() if times == 2}
        assert twice
        batches.refuse()
        assert batches.run(rows, **fields, **CLEARED)["saved"] == owed
        assert {batches.paid()[prompt] for prompt in twice} == {2}


class TestPageInsteadOfAFile:
    def bad_rows(self, batches: Batches, good: int, bad: int = 1) -> None:
        """Create ``bad`` rows that no try can save, ``good`` rows that are saved, and rows that were not sent."""
        batches.simulator.faults.add(PAGES | {"times": 2 * bad})
        batches.simulator.balance = str(PRICE * (good + bad))
        batches.failure(8, concurrency=1, transfer_concurrency=1)
        batches.simulator.balance = "100"
        assert (batches.paid().total(), len(batches.saved())) == (good + bad, good)

    def test_does_not_hold_up_other_rows(self, batches):
        self.bad_rows(batches, good=2)
        batches.simulator.faults.add(PAGES | {"times": 2})
        error = batches.failure(8, try_number=2, concurrency=1)
        assert begins(error, 7, 8, 8)
        assert set(batches.paid().values()) == {1}

    def test_prevents_new_payments_in_a_retry_but_not_after_a_clear_if_nothing_is_saved(self, batches):
        self.bad_rows(batches, good=0, bad=2)
        batches.simulator.faults.add(PAGES | {"times": 4})
        error = batches.failure(8, try_number=2, concurrency=1)
        assert begins(error, 0, 8, 2)
        assert batches.paid().total() == 2
        batches.simulator.faults.add(PAGES | {"times": 4})
        assert begins(batches.failure(8, concurrency=1, **CLEARED), 6, 8, 8)
        # The images are still owed: the pages may have come from a proxy.
        batches.simulator.faults.clear()
        assert batches.run(8, **CLEARED | {"try_number": 6})["saved"] == 8
        assert set(batches.paid().values()) == {1}


ODD = {
    "another status": {"merge": {"status": "succeeded"}},
    "a null beside it": {"data": [{"$file": 0}, None]},
    "an error beside it": {"data": [{"$file": 0}, {"error": {"code": "internal_error"}}]},
    "no bill": {"merge": {"usage": None}},
    "no type": {"data": [{"$file": 0, "mime_type": None, "deletes_at": None}]},
    "no number": {"merge": {"usage": {"total_cost": 0.04, "unit_price": "?"}}},
}


def test_responses_with_unexpected_fields_are_saved_and_do_not_stop_a_batch(batches):
    faults = [{"on": "image", "kind": "response", **odd} for odd in ODD.values()]
    batches.simulator.faults.add(*faults)
    summary = batches.run(12, concurrency=1)
    assert (summary["saved"], summary["failed"]) == (12, 0)
    assert len(batches.saved()) == 12
    assert batches.posts() == 12


def test_response_without_a_cost_counts_as_billed_and_not_as_an_unknown_outcome(batches):
    batches.simulator.faults.add({"on": "image", "kind": "response", "merge": {"usage": None}, "times": 2})
    batches.refuse(IMAGES_DENIED | {"skip": 3})
    for try_number in (1, 2):
        error = batches.failure(20, concurrency=1, try_number=try_number)
        assert re.match(
            r"3 of 20 rows are saved, (\d+) were billed \([\d.]+ USD in total; the API gave no cost for 2\), ",
            str(error),
        )
        assert "may have been billed" not in str(error)
        batches.refuse(IMAGES_DENIED)


def test_empty_list_of_requests_sends_nothing_and_writes_an_empty_manifest(batches):
    summary = batches.run([])
    assert (summary["requested"], summary["saved"], summary["failed"], summary["total_cost"]) == (0, 0, 0, 0)
    assert summary["uris"] == []
    bucket, _, key = summary["manifest"].removeprefix("s3://").partition("/")
    assert batches.client.get_object(Bucket=bucket, Key=key)["Body"].read() == b""
    assert batches.posts() == 0


def test_unknown_model_is_sent_once_and_rows_with_other_models_are_saved(batches):
    requests = [{"prompt": f"Picture {n}", "model": "there-is-none" if n % 2 else MODEL} for n in range(12)]
    error = batches.failure(requests, concurrency=1)
    assert begins(error, 6, 12, 6)
    statuses = Counter(post["status"] for post in batches.simulator.ledger.raw()["posts"])
    assert statuses == {200: 6, 400: 1}
    assert "The request was not sent: another row with this model was refused. " in str(error)
    assert decision(error) is RetryAction.FAIL


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (404, {"code": "not_found"}),
        (404, {"message": "Not found."}),
        (400, {"code": "model_not_found", "param": None}),
        (403, {"code": "model_not_available"}),
    ],
    ids=["404", "404 without a code", "400 by its code", "403 by its code"],
)
def test_model_rejected_with_another_status_or_code_is_sent_at_most_twice(batches, status, fields):
    body = {"error": {"message": "No such model.", **fields}}
    fault = {"on": "image", "kind": "status", "status": status, "body": body, "times": 12}
    batches.simulator.faults.add(fault)
    error = batches.failure(12, concurrency=1)
    assert begins(error, 0, 12, 0)
    # One row has the slot, and the next one may already be waiting for it.
    assert batches.posts() <= 2
    assert decision(error) is RetryAction.FAIL


def test_settings_that_the_model_rejects_are_sent_once_and_other_rows_are_saved(batches):
    requests = [{"prompt": f"Picture {n}"} | ({"resolution": "99K"} if n % 2 else {}) for n in range(12)]
    error = batches.failure(requests, concurrency=1)
    assert begins(error, 6, 12, 6)
    statuses = Counter(post["status"] for post in batches.simulator.ledger.raw()["posts"])
    assert statuses == {200: 6, 400: 1}
    assert "The request was not sent: another row with these settings was refused. " in str(error)


def test_rejected_prompt_does_not_stop_other_rows(batches):
    body = {"error": {"message": "Refused.", "code": "invalid_parameter", "param": "prompt"}}
    batches.simulator.faults.add({"on": "image", "kind": "status", "status": 400, "body": body})
    error = batches.failure(6, concurrency=1)
    assert begins(error, 5, 6, 5)


def test_max_cost_used_up_by_unknown_outcomes_fails_the_retry_and_reports_them(batches):
    batches.simulator.faults.add({"on": "image", "kind": "status", "status": 500, "times": 2})
    fields = {"max_cost": str(2 * PRICE), "on_unknown_outcome": "resubmit"}
    batches.failure(2, **fields)
    error = batches.failure(2, try_number=2, **fields)
    assert begins(error, 0, 2, 0)
    assert "2 more requests may have been billed" in str(error)
    assert "Nothing was billed" not in str(error)
    assert error.billed == "unknown"
    assert decision(error) is RetryAction.FAIL
    assert batches.posts() == 2


def test_batch_rejected_because_of_max_cost_still_pushes_a_summary(batches, context):
    with pytest.raises(errors.CostLimitError):
        batches.run(2, max_cost=str(PRICE))
    assert context.xcoms["return_value"] | {"uris": 0} == {
        "requested": 2,
        "saved": 0,
        "reused": 0,
        "failed": 0,
        "not_sent": 2,
        "total_cost": 0.0,
        "manifest": None,
        "aws_conn_id": "aws_default",
        "uris": 0,
    }
