# SPDX-License-Identifier: Apache-2.0
"""Later tries of a batch, and objects that already exist at its keys."""

from __future__ import annotations

import hashlib
import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.s3.store import S3Store
from airflow_provider_getimg.version_compat import RetryAction
from tests.server.operators.batch_bench import MANIFEST, MODEL, PRICE, play, rows
from tests.support.s3_faults import S3FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable


def change_entries(
    store: Any, change: Callable[[int, dict[str, Any]], object], *, notes: bool = True
) -> None:
    """Change what earlier tries recorded for each row; without ``notes``, as if killed before noting what they saved."""
    segment = json.loads(store.values["getimg_batch_0000"])
    entries = {key: entry for key, entry in segment["entries"].items() if notes or not key.endswith("/saved")}
    for number, entry in enumerate(entry for key, entry in entries.items() if not key.endswith("/saved")):
        change(number, entry)
    store.values = {"getimg_batch_0000": json.dumps(segment | {"entries": entries})}


def past_its_time(_: int, entry: dict[str, Any]) -> None:
    entry["response"]["data"][0]["deletes_at"] = "2020-01-01T00:00:00Z"


def gone(number: int, entry: dict[str, Any]) -> None:
    past_its_time(number, entry)
    entry["response"]["data"][0]["url"] += "0"


class TestRetry:
    def test_sends_only_rows_that_are_not_saved(self, bench):
        play(bench.simulator, {"on": "image", "kind": "status", "status": 500})
        error = bench.failure(rows(6), concurrency=1)
        assert re.match(
            r"5 of 6 rows are saved, 5 were billed \(0\.0125 USD in total\), 1 more request may have been billed, "
            r"1 failed\. Row \d: getimg\.ai failed \(500",
            str(error),
        )
        assert len(bench.billed()) == 5
        assert bench.run(rows(6), try_number=2, on_unknown_outcome="resubmit")["reused"] == 5
        assert bench.posts() == 7
        assert len(bench.files()) == 6

    def test_does_not_resend_a_row_with_a_lost_response_by_default(self, bench):
        play(bench.simulator, {"on": "image", "kind": "drop_after_billing"})
        first = bench.failure(rows(1))
        second = bench.failure(rows(1), try_number=2)
        assert bench.posts() == 1
        for error in (first, second):
            assert str(error).startswith(
                "0 of 1 rows are saved, 0 were billed (0 USD in total), 1 more request may have been billed, 1 failed."
            )
        assert "broke after the generation was sent" in str(first)
        assert "Try 1 sent this request at" in str(second)
        assert RETRY_POLICY.evaluate(second, 2, 3).action is RetryAction.FAIL

    def test_finds_images_saved_by_a_try_that_could_not_record_them(self, bench, store):
        # The API server rejects writes of a try that it presumes dead; S3 accepts them.
        bench.run(rows(2))
        entries = json.loads(store.values["getimg_batch_0000"])
        for name, entry in list(entries["entries"].items()):
            if name.endswith("/saved"):
                del entries["entries"][name]
            else:
                del entry["response"]
                entry["state"] = "submitted"
        store.values = {"getimg_batch_0000": json.dumps(entries)}
        summary = bench.run(rows(2), try_number=2)
        assert (summary["saved"], summary["reused"], bench.posts()) == (2, 2, 2)

    def test_saves_paid_images_without_a_new_request(self, bench):
        play(bench.simulator, {"on": "download", "kind": "status", "status": 500, "times": 99})
        error = bench.failure(rows(2))
        assert len(bench.billed()) == 2
        assert [line["outcome"] for line in bench.manifest()] == ["failed", "failed"]
        assert {line["cost"] for line in bench.manifest()} == {PRICE}
        assert RETRY_POLICY.evaluate(error, 1, 3).action is not RetryAction.FAIL
        play(bench.simulator)
        assert bench.run(rows(2), try_number=2) | {"uris": 0, "manifest": 0} == {
            "requested": 2,
            "saved": 2,
            "reused": 2,
            "failed": 0,
            "not_sent": 0,
            "total_cost": 2 * PRICE,
            "aws_conn_id": "aws_default",
            "uris": 0,
            "manifest": 0,
        }
        assert bench.posts() == 2

    def test_finds_images_saved_without_a_note_instead_of_paying_again(self, bench, store):
        bench.run(rows(20), concurrency=20)
        entries = json.loads(store.values["getimg_batch_0000"])["entries"]
        kept = {name: entry for name, entry in entries.items() if not name.endswith("/saved")}
        for number, entry in enumerate(kept.values()):
            # Killed between saving the object and writing the note, and retried after the URLs have expired.
            entry["response"]["data"][0]["deletes_at"] = "2020-01-01T00:00:00Z"
            if number % 2:
                del entry["response"]
                entry["state"] = "submitted"
        store.values = {"getimg_batch_0000": json.dumps({"epoch": 3, "entries": kept})}
        for policy in ("fail", "resubmit"):
            summary = bench.run(rows(20), try_number=2, on_unknown_outcome=policy)
            assert (summary["saved"], summary["reused"], bench.posts()) == (20, 20, 20)

    @pytest.mark.parametrize("policy", ["fail", "resubmit"])
    def test_finds_images_saved_without_a_note_at_keys_that_contain_the_generation_id(
        self, bench, store, policy
    ):
        key = f"s3://{bench.bucket}/night/{{generation_id}}.{{extension}}"
        bench.run(rows(3), s3_key=key)
        change_entries(store, past_its_time, notes=False)
        summary = bench.run(rows(3), s3_key=key, try_number=2, on_unknown_outcome=policy)
        assert (summary["saved"], summary["reused"], bench.posts()) == (3, 3, 3)

    @pytest.mark.parametrize("policy", ["fail", "resubmit"])
    def test_reuses_images_at_their_old_keys_if_their_keys_changed_and_their_urls_expired(
        self, bench, store, policy
    ):
        first = bench.run(rows(3))
        change_entries(store, gone)
        moved = f"s3://{bench.bucket}/moved/{{row}}.{{extension}}"
        summary = bench.run(rows(3), s3_key=moved, try_number=2, on_unknown_outcome=policy)
        assert (summary["reused"], bench.posts()) == (3, 3)
        assert summary["uris"] == first["uris"]
        assert [line["uri"] for line in bench.manifest()] == first["uris"]

    def test_reuses_images_at_their_old_keys_if_their_new_keys_are_taken(self, bench):
        refused = {"prompt": "A wolf", "model": "there-is-none"}
        bench.failure([*rows(2), refused])
        files = bench.files()
        bench.failure([refused, *rows(2)], try_number=2, concurrency=1)
        assert [(line["outcome"], line.get("uri")) for line in bench.manifest()[1:]] == [
            ("reused", f"s3://{bench.bucket}/night/000.jpg"),
            # This key was free.
            ("reused", f"s3://{bench.bucket}/night/002.jpg"),
        ]
        assert bench.files() == files | {"night/002.jpg": files["night/001.jpg"]}

    def test_counts_and_logs_what_was_billed_for_rows_that_are_no_longer_in_the_list(self, bench, capsys):
        play(
            bench.simulator,
            {"on": "image", "kind": "drop_after_billing"},
            {"on": "download", "kind": "status", "status": 403, "times": 99},
        )
        bench.failure(rows(2), concurrency=1)
        play(bench.simulator)
        summary = bench.run([{"prompt": "Another"}], try_number=2)
        assert summary["total_cost"] == 2 * PRICE
        assert (
            "Earlier tries sent 2 requests for rows that are no longer in the list, which should be the same in each try. As "
            "far as is known, 0.0025 USD was billed for them; 1 more request may have been billed. Unsaved generations: req-"
        ) in capsys.readouterr().out

    def test_reports_what_was_billed_for_removed_rows_even_if_it_cannot_start(self, bench, monkeypatch):
        bench.run(rows(1))
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", '{"conn_type": "aws", "extra": {"role_arn": 7}}')
        error = bench.failure([{"prompt": "Another"}], try_number=2)
        assert "(0.0025 USD in total)" in str(error)
        assert (error.billed, float(error.cost)) == ("yes", PRICE)

    def test_reports_an_earlier_unknown_outcome_even_if_the_model_is_not_in_the_catalogue(self, bench):
        play(bench.simulator, {"on": "image", "kind": "drop_after_billing"})
        bench.failure(rows(1), max_cost=1)
        error = bench.failure([{"prompt": "x", "model": "there-is-none"}], try_number=2, max_cost=1)
        assert "1 more request may have been billed" in str(error)
        assert error.billed == "unknown"

    def test_does_not_reuse_an_image_at_the_key_of_another_row_with_if_exists_replace(self, bench, store):
        bench.run(rows(2))
        change_entries(store, gone)
        error = bench.failure([{"prompt": "A wolf"}, *rows(2)], try_number=2, if_exists="replace")
        assert [line["outcome"] for line in bench.manifest()] == ["saved", "failed", "failed"]
        assert "its files are gone" in str(error)

    def test_does_not_reuse_the_image_of_another_row_if_the_api_repeats_an_id(self, bench, store):
        bench.simulator.faults.add({"on": "image", "kind": "response", "merge": {"id": "same"}, "times": 2})
        key = f"s3://{bench.bucket}/night/{{generation_id}}.{{extension}}"
        bench.failure(rows(2), s3_key=key, concurrency=1)
        change_entries(store, gone, notes=False)
        bench.failure(rows(2), s3_key=key, concurrency=1, try_number=2)
        assert sorted(line["outcome"] for line in bench.manifest()) == ["failed", "reused"]

    @pytest.mark.parametrize("if_exists", ["skip", "replace"])
    def test_saved_image_is_found_unless_a_row_with_the_same_id_replaces_it_at_that_moment(
        self, bench, store, monkeypatch, if_exists
    ):
        def slow(*args: Any, **kwargs: Any) -> Any:
            found = head(*args, **kwargs)
            time.sleep(0.3)
            return found

        bench.simulator.faults.add({"on": "image", "kind": "response", "merge": {"id": "same"}, "times": 2})
        fields = {
            "s3_key": f"s3://{bench.bucket}/night/{{generation_id}}.{{extension}}",
            "concurrency": 1,
            "if_exists": if_exists,
        }
        bench.failure(rows(2), **fields)
        [saved] = [line["row"] for line in bench.manifest() if line["outcome"] == "saved"]
        segment = json.loads(store.values["getimg_batch_0000"])
        [note] = [key for key, value in segment["entries"].items() if isinstance(value, list)]
        del segment["entries"][note]
        gone(0, segment["entries"][note.removesuffix("/saved")])
        store.values["getimg_batch_0000"] = json.dumps(segment)
        head = S3Store.head
        monkeypatch.setattr(S3Store, "head", slow)
        # Under resubmit, an image that is not found would be paid for again.
        later = {"on_unknown_outcome": "resubmit"} if if_exists == "skip" else {}
        bench.failure(rows(2), try_number=2, **fields, **later)
        lines = bench.manifest()
        assert lines[saved]["outcome"] == ("reused" if if_exists == "skip" else "failed")
        [content] = bench.files().values()
        kept = [line["sha256"] for line in lines if line["outcome"] != "failed"]
        assert kept == [hashlib.sha256(content).hexdigest()]
        assert bench.posts() == 2

    @pytest.mark.parametrize(
        "later",
        [{"try_number": 5, "max_tries": 7}, {"try_number": 2, "on_unknown_outcome": "resubmit"}],
        ids=str,
    )
    def test_regenerates_more_deleted_images_than_it_sends_at_once_and_saves_the_rest(
        self, bench, store, later
    ):
        bench.run(rows(6), s3_key=f"s3://{bench.bucket}/x/{{sha256}}.{{extension}}")

        def owed(number: int, entry: dict[str, Any]) -> None:
            # The last row's file is still there, and must be saved although the other rows come first.
            if number < 5:
                gone(number, entry)

        change_entries(store, owed, notes=False)
        summary = bench.run(rows(6), concurrency=1, **later)
        assert (summary["saved"], summary["reused"], bench.posts()) == (6, 1, 11)

    def test_changes_nothing_but_the_manifest_of_a_completed_batch(self, bench, store):
        first = bench.run(rows(5))
        written = dict(store.values)
        times = {
            entry["Key"]: entry["LastModified"]
            for entry in bench.client.list_objects_v2(Bucket=bench.bucket)["Contents"]
        }
        second = bench.run(rows(5), try_number=2)
        assert second == first | {"reused": 5}
        assert store.values == written
        again = bench.client.list_objects_v2(Bucket=bench.bucket)["Contents"]
        assert {entry["Key"]: entry["LastModified"] for entry in again if entry["Key"] != MANIFEST} == {
            key: time for key, time in times.items() if key != MANIFEST
        }

    def test_reuses_the_paid_images_of_rows_that_move_in_the_list(self, bench):
        bench.run(rows(4))
        requests = [{"prompt": "A new one"}, *rows(4)]
        # Each row has a new key now, and its paid image is saved there.
        summary = bench.run(requests, try_number=2, s3_key=f"s3://{bench.bucket}/moved/{{row}}.{{extension}}")
        assert (summary["saved"], summary["reused"]) == (5, 4)
        assert bench.posts() == 5

    @pytest.mark.parametrize(
        ("try_number", "bill"),
        [(1, "Nothing was billed"), (2, "It may have been billed")],
        ids=["first", "later"],
    )
    def test_sends_nothing_if_the_state_store_is_unavailable(self, bench, store, try_number, bill):
        store.broken = True
        with pytest.raises(errors.GetimgError, match=rf"The task state store could not be read: .*\. {bill}"):
            bench.run(rows(2), try_number=try_number)
        assert bench.posts() == 0

    def test_sends_nothing_if_the_recorded_state_is_malformed(self, bench, store):
        store.values["getimg_batch_0000"] = json.dumps({"epoch": 3, "entries": "?"})
        with pytest.raises(errors.GetimgError, match="Delete 'getimg_batch_0000' from the task's state"):
            bench.run(rows(2))
        assert bench.posts() == 0

    def test_image_that_is_paid_for_again_stays_on_the_bill(self, bench, store):
        key = f"s3://{bench.bucket}/x/{{sha256}}.{{extension}}"
        refused = {"prompt": "A wolf", "model": "there-is-none"}
        bench.failure([*rows(1), refused], s3_key=key)
        change_entries(store, lambda number, entry: entry and gone(number, entry), notes=False)
        for try_number in (2, 3):
            error = bench.failure(
                [*rows(1), refused], s3_key=key, try_number=try_number, on_unknown_outcome="resubmit"
            )
            assert str(error).startswith(
                "1 of 2 rows are saved, 1 was billed (0.0050 USD in total), 1 failed. "
            )
        assert len(bench.billed()) == 2
        # With a connection that is not usable, the bill comes from what was recorded.
        error = bench.failure(
            [*rows(1), refused], s3_key=key, try_number=4, aws_conn_id="none", on_unknown_outcome="resubmit"
        )
        assert (float(error.cost), "may have been billed" in str(error)) == (2 * PRICE, False)

    def test_bill_is_logged_and_pushed_if_the_task_times_out_after_the_last_image(
        self, bench, context, monkeypatch, capsys
    ):
        def late(*_: Any) -> None:
            raise AirflowTaskTimeout

        monkeypatch.setattr(GenerateImagesToS3Operator, "_remember", late)
        with pytest.raises(AirflowTaskTimeout):
            bench.run(rows(2))
        assert context.xcoms["return_value"]["saved"] == 2
        assert context.xcoms["getimg_cost"]["cost"] == 2 * PRICE
        assert "2 of 2 rows are saved, 2 were billed (0.0050 USD in total)." in capsys.readouterr().out

    def test_reports_what_was_billed_if_max_cost_stops_it_before_paying_again(self, bench, store):
        bench.run(rows(1), s3_key=f"s3://{bench.bucket}/x/{{sha256}}.{{extension}}")
        change_entries(store, gone, notes=False)
        error = bench.failure(rows(1), try_number=2, on_unknown_outcome="resubmit", max_cost=PRICE)
        assert str(error).startswith(
            "0 of 1 rows are saved, 1 was billed (0.0025 USD in total), 1 was not sent. The batch was stopped: 0.0025 USD were"
        )
        assert error.generation_ids == (bench.manifest()[0]["generation_id"],)


class TestExistingObjects:
    def test_clear_reuses_saved_images_and_pays_only_for_the_rest(self, bench):
        bench.run(rows(3))
        summary = bench.run(rows(5), max_tries=7, try_number=5)
        assert (summary["saved"], summary["reused"], summary["total_cost"]) == (5, 3, 2 * PRICE)
        assert bench.billed() == [row["prompt"] for row in rows(5)]
        assert [line["outcome"] for line in bench.manifest()] == ["reused"] * 3 + ["saved"] * 2
        assert all(line["sha256"] and line["generation_id"] for line in bench.manifest())

    @pytest.mark.parametrize("may_list", [True, False])
    def test_row_is_not_sent_if_a_listing_shows_its_object_and_reading_is_denied(
        self, bench, monkeypatch, seaweedfs, may_list
    ):
        bench.client.put_object(Bucket=bench.bucket, Key="night/000.webp", Body=b"mine")
        # Its key starts with the key of the second row.
        bench.client.put_object(Bucket=bench.bucket, Key="night/001.webp.old", Body=b"mine, too")
        with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
            monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", proxy.aws_connection(seaweedfs.aws_connection()))
            refused = ["HeadObject", *([] if may_list else ["ListObjectsV2"])]
            proxy.set_faults(
                [
                    {"kind": "status", "code": "AccessDenied", "operation": operation, "times": 99}
                    for operation in refused
                ]
            )
            error = bench.failure(rows(2), defaults={"model": MODEL, "output_format": "webp"})
        assert len(bench.files()) == 3
        assert bench.files()["night/000.webp"] == b"mine"
        assert bench.posts() == (1 if may_list else 2)
        assert ("already exists but cannot be read" in str(error)) is may_list

    def test_clear_of_many_rows_finds_existing_objects_with_one_listing(self, bench, monkeypatch, seaweedfs):
        bench.run(rows(20), concurrency=20)
        bench.client.delete_object(Bucket=bench.bucket, Key="night/007.jpg")
        with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
            monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", proxy.aws_connection(seaweedfs.aws_connection()))
            summary = bench.run(rows(21), max_tries=7, try_number=5, concurrency=21)
            assert (summary["saved"], summary["reused"], bench.posts()) == (21, 19, 22)
            operations = proxy.operations()
            assert operations.count("ListObjectsV2") == 1
            # Only existing objects are checked.
            assert operations.count("HeadObject") == 19
            proxy.clear()
            # Without permission to list, every key is checked.
            proxy.set_faults(
                [{"kind": "status", "code": "AccessDenied", "operation": "ListObjectsV2", "times": 9}]
            )
            assert bench.run(rows(22), max_tries=11, try_number=9, concurrency=22)["reused"] == 21
            assert proxy.operations().count("HeadObject") == 22
        assert bench.posts() == 23

    @pytest.mark.parametrize("if_exists", ["skip", "fail"])
    def test_row_with_an_occupied_key_is_not_sent(self, bench, if_exists):
        bench.client.put_object(Bucket=bench.bucket, Key="night/001.jpg", Body=b"theirs")
        error = bench.failure(rows(3), if_exists=if_exists)
        why = "was not made from this request" if if_exists == "skip" else "if_exists is 'fail'"
        assert f"night/001.jpg already exists, and {why}. No request was sent." in str(error)
        assert len(bench.billed()) == 2
        assert bench.files()["night/001.jpg"] == b"theirs"

    def test_clear_regenerates_every_row_with_if_exists_replace(self, bench):
        bench.run(rows(2))
        before = bench.files()
        assert bench.run(rows(2), max_tries=7, try_number=5, if_exists="replace")["reused"] == 0
        assert bench.posts() == 4
        assert bench.files().keys() == before.keys()
