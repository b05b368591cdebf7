# SPDX-License-Identifier: Apache-2.0
"""One process, a real S3 server and the simulator; ``tests/integration`` runs batches in Airflow's own processes."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.version_compat import RetryAction
from tests.support.raw_servers import RawServer, response
from tests.support.s3_faults import S3FaultProxy, open_uploads

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS

REPORT = "airflow_provider_getimg.batch.progress.Progress.report"
MODEL = "sketch-mini"
PRICE = 0.0025
MANIFEST = "night/manifests/a_dag/manual__2026-01-01T00_00_00_00_00/a_task.jsonl"


def rows(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"A red fox, number {number}", **fields} for number in range(count)]


class Bench:
    """Batches into one empty bucket."""

    def __init__(self, simulator: GetimgSimulator, seaweedfs: SeaweedFS, bucket: str, context: Any) -> None:
        self.simulator = simulator
        self.bucket = bucket
        self.client = seaweedfs.client()
        self.context = context

    def operator(self, requests: Any, **fields: Any) -> GenerateImagesToS3Operator:
        given = {
            "s3_key": f"s3://{self.bucket}/night/{{row:03}}.{{extension}}",
            "defaults": {"model": MODEL},
            "concurrency": 4,
        }
        return GenerateImagesToS3Operator(task_id="batch", requests=requests, **(given | fields))

    def run(self, requests: Any, *, try_number: int = 1, max_tries: int = 3, **fields: Any) -> dict[str, Any]:
        context = self.context(try_number=try_number, max_tries=max_tries)
        return self.operator(requests, **fields).execute(context)

    def failure(self, requests: Any, **fields: Any) -> errors.BatchIncompleteError:
        with pytest.raises(errors.BatchIncompleteError) as caught:
            self.run(requests, **fields)
        assert "sig=" not in str(caught.value)
        return caught.value

    def objects(self) -> dict[str, bytes]:
        assert open_uploads(self.client, self.bucket) == []
        listed = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {
            entry["Key"]: self.client.get_object(Bucket=self.bucket, Key=entry["Key"])["Body"].read()
            for entry in listed
        }

    def files(self) -> dict[str, bytes]:
        return {key: body for key, body in self.objects().items() if not key.endswith(".jsonl")}

    def manifest(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.objects()[MANIFEST].splitlines()]

    def billed(self) -> list[str]:
        return sorted(post["prompt"] for post in self.simulator.ledger.raw()["posts"] if post["billed"])

    def posts(self) -> int:
        return len(self.simulator.ledger)


@pytest.fixture
def bench(monkeypatch, getimg_default, simulator, seaweedfs, bucket, context) -> Bench:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())
    return Bench(simulator, seaweedfs, bucket, context)


def change_entries(
    store: Any, change: Callable[[int, dict[str, Any]], object], *, notes: bool = True
) -> None:
    """Change what the tries before recorded of each row; without notes, they were killed before they could write them."""
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


class TestEveryRow:
    def test_is_generated_once_and_stored_in_s3(self, bench):
        summary = bench.run(rows(10))
        assert summary == {
            "requested": 10,
            "saved": 10,
            "reused": 0,
            "failed": 0,
            "total_cost": 10 * PRICE,
            "manifest": f"s3://{bench.bucket}/{MANIFEST}",
            "aws_conn_id": "aws_default",
            "uris": [f"s3://{bench.bucket}/night/{number:03}.jpg" for number in range(10)],
        }
        assert summary == json.loads(json.dumps(summary))
        assert bench.billed() == [row["prompt"] for row in rows(10)]
        assert sorted(bench.files()) == [f"night/{number:03}.jpg" for number in range(10)]

    @pytest.mark.parametrize("if_exists", ["skip", "replace"])
    def test_is_saved_or_fails_where_the_api_repeats_an_id(self, bench, if_exists):
        bench.simulator.faults.add({"on": "image", "kind": "response", "merge": {"id": "same"}, "times": 2})
        error = bench.failure(
            rows(2),
            s3_key=f"s3://{bench.bucket}/night/{{generation_id}}.{{extension}}",
            if_exists=if_exists,
            concurrency=1,
        )
        assert "night/same.jpg already exists with different content" in str(error)
        assert error.billed == "yes"
        assert list(bench.files()) == ["night/same.jpg"]
        assert sorted(line["outcome"] for line in bench.manifest()) == ["failed", "saved"]

    def test_is_a_line_of_the_manifest(self, bench):
        bench.run(rows(3, labels={"sku": "A-1"}))
        manifest = bench.manifest()
        files = bench.files()
        assert [line["row"] for line in manifest] == [0, 1, 2]
        for number, line in enumerate(manifest):
            content = files[f"night/{number:03}.jpg"]
            assert line["outcome"] == "saved"
            assert line["uri"] == f"s3://{bench.bucket}/night/{number:03}.jpg"
            assert (line["sha256"], line["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
            assert line["request"] == {
                "model": MODEL,
                "prompt": rows(3)[number]["prompt"],
                "labels": {"sku": "A-1"},
            }
            assert (line["cost"], line["error"]) == (PRICE, None)
            assert line["generation_id"] in {post["id"] for post in bench.simulator.ledger.raw()["posts"]}

    def test_may_name_its_key_by_its_fields(self, bench):
        requests = [
            {"prompt": "A fox", "aspect_ratio": "1:1", "labels": {"sku": "A-1", "size": 7}},
            {"prompt": "A fox", "output_format": "png", "labels": {"sku": "B-2", "size": 12}},
        ]
        bench.run(
            requests, s3_bucket=bench.bucket, s3_key="{sku}/{size:03}-{aspect_ratio}-{model}.{extension}"
        )
        assert sorted(bench.files()) == [f"A-1/007-1:1-{MODEL}.jpg", f"B-2/012-default-{MODEL}.png"]

    def test_is_its_own_even_where_requests_are_alike(self, bench):
        assert bench.run([{"prompt": "A fox"}] * 3)["saved"] == 3
        assert bench.billed() == ["A fox"] * 3
        assert bench.run([{"prompt": "A fox"}] * 3, try_number=2)["reused"] == 3
        assert bench.posts() == 3

    def test_in_a_file_that_is_gone_later_denies_no_bill(self, bench):
        refused = {"prompt": "A wolf", "model": "there-is-none"}
        bench.failure([*rows(2), refused])
        with pytest.raises(errors.InvalidInputError) as error:
            bench.run(f"s3://{bench.bucket}/gone.jsonl", try_number=2)
        assert str(error.value).startswith("2 generations were billed (0.0050 USD together) and are saved. ")

    def test_may_come_from_a_file_in_s3(self, bench):
        lines = "\n".join(json.dumps(row) for row in rows(3)) + "\n\n"
        bench.client.put_object(Bucket=bench.bucket, Key="in.jsonl", Body=lines.encode())
        assert bench.run(f"s3://{bench.bucket}/in.jsonl")["saved"] == 3

    def test_in_a_file_that_a_role_may_not_read_is_one_sentence(self, bench, monkeypatch):
        refusal = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>not you</Message></Error></ErrorResponse>"
        connection = json.loads(os.environ["AIRFLOW_CONN_AWS_DEFAULT"])
        with RawServer(response(refusal, status="403 Forbidden")) as sts:
            connection["extra"] |= {
                "role_arn": "arn:aws:iam::123456789012:role/reader",
                "service_config": {"sts": {"endpoint_url": sts.url}},
            }
            monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
            with pytest.raises(
                errors.ConnectionConfigError,
                match=r"^The AWS connection 'aws_default' can't be used: .*not you.* Nothing was billed\.$",
            ):
                bench.run(f"s3://{bench.bucket}/in.jsonl")

    def test_none_at_all_is_no_failure(self, bench):
        summary = bench.run([])
        assert (summary["requested"], summary["saved"], summary["uris"]) == (0, 0, [])
        # What reads it downstream finds an empty one.
        assert list(bench.objects().values()) == [b""]
        assert summary["manifest"] == f"s3://{bench.bucket}/{next(iter(bench.objects()))}"


class TestBadInput:
    @pytest.mark.parametrize(
        "fields", [{"concurrency": "x"}, {"requests": [{}]}, {"s3_key": "s3://b/{x}"}], ids=str
    )
    @pytest.mark.parametrize(
        ("fault", "bill"),
        [
            (
                {"on": "download", "kind": "status", "status": 403},
                "^Generation .* was billed .* and is not saved. ",
            ),
            ({"on": "image", "kind": "drop_after_billing"}, " It may have been billed.$"),
        ],
        ids=["owed", "unknown"],
    )
    def test_of_a_later_try_does_not_hide_what_an_earlier_one_was_billed(self, bench, fault, bill, fields):
        bench.simulator.faults.add({**fault, "times": 99})
        bench.failure(rows(1))
        with pytest.raises(errors.InvalidInputError, match=bill):
            bench.run(**({"requests": rows(1)} | fields), try_number=2)

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            (
                {"requests": "rows"},
                "requests must be a list of dicts, or the s3://bucket/key of a JSON Lines file, got 'rows'.",
            ),
            ({"requests": {"prompt": "x"}}, "requests must be a list of dicts, or"),
            ({"requests": ["x"]}, "requests[0] must be a dict with at least model and prompt, got 'x'."),
            ({"requests": [{}]}, "requests[0]: prompt is missing."),
            (
                {"requests": [{"prompt": ""}] * 5},
                "requests[0]: prompt must not be empty. requests[1]:",
            ),
            (
                {"requests": [{"prompt": "x", "promt": "y"}]},
                "requests[0]: 'promt' is not a known field. Known fields: model, prompt,",
            ),
            (
                {"requests": [{"prompt": "x", "labels": "y"}]},
                "requests[0]: labels must be a dict of names of your own",
            ),
            (
                {"requests": [{"prompt": "x", "labels": {"row": 1}}]},
                "requests[0]: labels must not hold 'row', which is a",
            ),
            (
                {"requests": [{"prompt": "x", "images": ["ftp://x"]}]},
                "requests[0]: images[0] must be an https:// URL, the",
            ),
            ({"requests": "s3://nowhere"}, "requests must be s3://bucket/key, got 's3://nowhere'."),
            (
                {"defaults": "x"},
                "defaults must be a dict of the fields that the requests share, got 'x'.",
            ),
            ({"s3_key": "s3://b/{nothing}"}, "s3_key has the unknown placeholder '{nothing}'. Known"),
            (
                {"s3_key": "s3://b/same.jpg"},
                "s3_key gives rows 0 and 1 the same key 'same.jpg': tell them apart with",
            ),
            (
                {"s3_key": "s3://b/{prompt}/../x"},
                "requests[0]: s3_key gives the key 'A red fox, number 0/../x': no",
            ),
            ({"s3_key": "s3://b/{prompt:x}"}, "requests[0]: s3_key has {prompt:x}, which can't format 'A"),
            (
                {"s3_key": "s3://b/{width}.jpg"},
                "s3_key gives rows 0 and 1 the same key '99999.jpg': tell them",
            ),
            ({"s3_key": "s3://b/{row}.png"}, "requests[0]: s3_key must end in {extension}, or in .jpg where"),
            ({"s3_key": "s3://b/{row}-{sku}"}, "s3_key has the unknown placeholder '{sku}'. Known"),
            (
                {
                    "requests": [{"prompt": "x", "labels": {"sku": 1}}, {"prompt": "y"}],
                    "s3_key": "s3://b/{row}-{sku}",
                },
                "requests[1] has no label 'sku', which s3_key names.",
            ),
            (
                {"requests": [{"prompt": "half \ud83d"}]},
                "requests[0]: prompt must be text that can be encoded, got",
            ),
            (
                {"s3_key": "{row}"},
                "or s3_key alone a full s3://bucket/key, got s3_key '{row}' and s3_bucket None.",
            ),
            ({"concurrency": 0}, "concurrency must be a whole number, 1 or more, got 0."),
            (
                {"transfer_concurrency": "x"},
                "transfer_concurrency must be a whole number, 1 or more, got 'x'.",
            ),
            (
                {"max_failures": -1},
                "max_failures must be a number of rows, or a share such as 0.05 or '5%', got -1.",
            ),
            (
                {"max_failures": 1.5},
                "max_failures must be a number of rows, or a share such as 0.05 or '5%', got 1.5.",
            ),
            (
                {"max_failures": "many"},
                "max_failures must be a number of rows, or a share such as 0.05 or '5%', got 'many'.",
            ),
            (
                {"max_cost": "cheap"},
                "max_cost must be an amount in USD, 0 or more, such as '0.05', got 'cheap'.",
            ),
            ({"if_exists": "ask"}, "if_exists must be 'skip', 'replace' or 'fail', got 'ask'."),
            (
                {"on_unknown_outcome": "retry"},
                "on_unknown_outcome must be 'fail' or 'resubmit', got 'retry'.",
            ),
            ({"manifest_key": "x/"}, "manifest_key must be a key or a full s3://bucket/key, got 'x/'."),
            ({"extra_args": {"StorageKlass": "x"}}, "such as ACL, Metadata, ServerSideEncryption, "),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_is_one_sentence_before_anything_is_asked_or_written(self, bench, store, fields, sentence):
        with pytest.raises(errors.InvalidInputError) as error:
            bench.run(**({"requests": rows(2)} | fields))
        assert sentence in str(error.value).replace(f"s3://{bench.bucket}", "s3://b")
        assert str(error.value).endswith(" Nothing was billed.")
        assert bench.posts() == 0
        assert bench.objects() == {}
        assert store.values == {}

    def test_of_many_rows_names_the_first_and_counts_the_rest(self, bench):
        with pytest.raises(errors.InvalidInputError, match=r"requests\[0\].*requests\[2\]: .* And 2 more\. "):
            bench.run([{"prompt": ""}] * 5)

    def test_in_a_file_is_named_by_its_line(self, bench):
        bench.client.put_object(Bucket=bench.bucket, Key="in.jsonl", Body=b'{"prompt": "x"}\n\nnot json\n')
        with pytest.raises(errors.InvalidInputError, match=r"in\.jsonl line 3 must be a JSON object with"):
            bench.run(f"s3://{bench.bucket}/in.jsonl")

    def test_a_missing_file_or_bucket(self, bench):
        with pytest.raises(errors.InvalidInputError, match=r"there-is-none\.jsonl\) can't be read from S3"):
            bench.run(f"s3://{bench.bucket}/there-is-none.jsonl")
        error = bench.failure(rows(1), s3_key="s3://there-is-none/{row}")
        assert str(error).startswith("0 of 1 rows are saved, 0 were billed (0 USD in all), 1 was not sent. ")
        assert "there is no bucket 'there-is-none'." in str(error)
        assert str(error).endswith(" Nothing was billed.")
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL
        assert bench.posts() == 0


def play(simulator: GetimgSimulator, *faults: dict[str, Any]) -> None:
    simulator.faults.clear()
    simulator.faults.add(*faults)


class TestRetry:
    def test_asks_only_for_what_is_missing(self, bench):
        play(bench.simulator, {"on": "image", "kind": "status", "status": 500})
        error = bench.failure(rows(6), concurrency=1)
        assert re.match(
            r"5 of 6 rows are saved, 5 were billed \(0\.0125 USD in all\), 1 more request may have been billed, "
            r"1 failed\. Row \d: getimg\.ai failed \(500",
            str(error),
        )
        assert len(bench.billed()) == 5
        assert bench.run(rows(6), try_number=2, on_unknown_outcome="resubmit")["reused"] == 5
        assert bench.posts() == 7
        assert len(bench.files()) == 6

    def test_of_a_row_whose_response_was_lost_asks_nothing_by_default(self, bench):
        play(bench.simulator, {"on": "image", "kind": "drop_after_billing"})
        first = bench.failure(rows(1))
        second = bench.failure(rows(1), try_number=2)
        assert bench.posts() == 1
        for error in (first, second):
            assert str(error).startswith(
                "0 of 1 rows are saved, 0 were billed (0 USD in all), 1 more request may have been billed, 1 failed."
            )
        assert "broke after the generation was sent" in str(first)
        assert "Try 1 sent this request at" in str(second)
        assert RETRY_POLICY.evaluate(second, 2, 3).action is RetryAction.FAIL

    def test_finds_what_a_try_saved_that_could_no_longer_record_it(self, bench, store):
        # The API server takes no more notes of a try that it gave up for dead; S3 does.
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
            "total_cost": 2 * PRICE,
            "aws_conn_id": "aws_default",
            "uris": 0,
            "manifest": 0,
        }
        assert bench.posts() == 2

    def test_looks_for_what_was_saved_without_a_note_before_it_pays_again(self, bench, store):
        bench.run(rows(20), concurrency=20)
        entries = json.loads(store.values["getimg_batch_0000"])["entries"]
        kept = {name: entry for name, entry in entries.items() if not name.endswith("/saved")}
        for number, entry in enumerate(kept.values()):
            # Killed between the object and the note, and tried again when the URLs are dead.
            entry["response"]["data"][0]["deletes_at"] = "2020-01-01T00:00:00Z"
            if number % 2:
                del entry["response"]
                entry["state"] = "submitted"
        store.values = {"getimg_batch_0000": json.dumps({"epoch": 3, "entries": kept})}
        for policy in ("fail", "resubmit"):
            summary = bench.run(rows(20), try_number=2, on_unknown_outcome=policy)
            assert (summary["saved"], summary["reused"], bench.posts()) == (20, 20, 20)

    @pytest.mark.parametrize("policy", ["fail", "resubmit"])
    def test_finds_what_was_saved_without_a_note_at_a_key_that_the_response_names(self, bench, store, policy):
        key = f"s3://{bench.bucket}/night/{{generation_id}}.{{extension}}"
        bench.run(rows(3), s3_key=key)
        change_entries(store, past_its_time, notes=False)
        summary = bench.run(rows(3), s3_key=key, try_number=2, on_unknown_outcome=policy)
        assert (summary["saved"], summary["reused"], bench.posts()) == (3, 3, 3)

    @pytest.mark.parametrize("policy", ["fail", "resubmit"])
    def test_leaves_images_where_they_are_that_have_another_key_now_and_dead_urls(self, bench, store, policy):
        first = bench.run(rows(3))
        change_entries(store, gone)
        moved = f"s3://{bench.bucket}/moved/{{row}}.{{extension}}"
        summary = bench.run(rows(3), s3_key=moved, try_number=2, on_unknown_outcome=policy)
        assert (summary["reused"], bench.posts()) == (3, 3)
        assert summary["uris"] == first["uris"]
        assert [line["uri"] for line in bench.manifest()] == first["uris"]

    def test_leaves_images_where_they_are_whose_new_keys_are_taken(self, bench):
        refused = {"prompt": "A wolf", "model": "there-is-none"}
        bench.failure([*rows(2), refused])
        files = bench.files()
        bench.failure([refused, *rows(2)], try_number=2, concurrency=1)
        assert [(line["outcome"], line.get("uri")) for line in bench.manifest()[1:]] == [
            ("reused", f"s3://{bench.bucket}/night/000.jpg"),
            # Nothing was at this key.
            ("reused", f"s3://{bench.bucket}/night/002.jpg"),
        ]
        assert bench.files() == files | {"night/002.jpg": files["night/001.jpg"]}

    def test_counts_what_was_billed_for_rows_that_are_no_longer_in_the_list(self, bench, capsys):
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
            "Earlier tries sent 2 requests for rows that are no longer in the list, which should be the same in each try. They "
            "were billed 0.0025 USD, as far as is known; 1 may have been billed. Their generations that are not saved: req-"
        ) in capsys.readouterr().out

    def test_that_can_not_begin_says_what_was_billed_for_rows_that_are_no_longer_in_the_list(
        self, bench, monkeypatch
    ):
        bench.run(rows(1))
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", '{"conn_type": "aws", "extra": {"role_arn": 7}}')
        error = bench.failure([{"prompt": "Another"}], try_number=2)
        assert "(0.0025 USD in all)" in str(error)
        assert (error.billed, float(error.cost)) == ("yes", PRICE)

    def test_denies_no_bill_where_the_catalogue_can_not_be_asked(self, bench):
        play(bench.simulator, {"on": "image", "kind": "drop_after_billing"})
        bench.failure(rows(1), max_cost=1)
        error = bench.failure([{"prompt": "x", "model": "there-is-none"}], try_number=2, max_cost=1)
        assert "1 more request may have been billed" in str(error)
        assert error.billed == "unknown"

    def test_of_a_batch_that_replaces_shows_no_image_at_a_key_that_another_row_takes(self, bench, store):
        bench.run(rows(2))
        change_entries(store, gone)
        error = bench.failure([{"prompt": "A wolf"}, *rows(2)], try_number=2, if_exists="replace")
        assert [line["outcome"] for line in bench.manifest()] == ["saved", "failed", "failed"]
        assert "its files are gone" in str(error)

    def test_takes_no_image_for_that_of_another_row_though_an_api_repeats_an_id(self, bench, store):
        bench.simulator.faults.add({"on": "image", "kind": "response", "merge": {"id": "same"}, "times": 2})
        key = f"s3://{bench.bucket}/night/{{generation_id}}.{{extension}}"
        bench.failure(rows(2), s3_key=key, concurrency=1)
        change_entries(store, gone, notes=False)
        bench.failure(rows(2), s3_key=key, concurrency=1, try_number=2)
        assert sorted(line["outcome"] for line in bench.manifest()) == ["failed", "reused"]

    @pytest.mark.parametrize(
        "later",
        [{"try_number": 5, "max_tries": 7}, {"try_number": 2, "on_unknown_outcome": "resubmit"}],
        ids=str,
    )
    def test_goes_on_where_more_images_are_gone_than_it_sends_at_once(self, bench, store, later):
        bench.run(rows(6), s3_key=f"s3://{bench.bucket}/x/{{sha256}}.{{extension}}")

        def owed(number: int, entry: dict[str, Any]) -> None:
            # The last one's file is still there, and is to be saved although the others come before it.
            if number < 5:
                gone(number, entry)

        change_entries(store, owed, notes=False)
        summary = bench.run(rows(6), concurrency=1, **later)
        assert (summary["saved"], summary["reused"], bench.posts()) == (6, 1, 11)

    def test_of_a_batch_that_is_done_touches_nothing(self, bench, store):
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

    def test_follows_rows_that_move_in_the_list(self, bench):
        bench.run(rows(4))
        requests = [{"prompt": "A new one"}, *rows(4)]
        # Each has a new key now: the paid image is saved there.
        summary = bench.run(requests, try_number=2, s3_key=f"s3://{bench.bucket}/moved/{{row}}.{{extension}}")
        assert (summary["saved"], summary["reused"]) == (5, 4)
        assert bench.posts() == 5

    @pytest.mark.parametrize(
        ("try_number", "bill"),
        [(1, "Nothing was billed"), (2, "It may have been billed")],
        ids=["first", "later"],
    )
    def test_asks_nothing_where_the_state_store_is_away(self, bench, store, try_number, bill):
        store.broken = True
        with pytest.raises(errors.GetimgError, match=rf"The task state store could not be read: .*\. {bill}"):
            bench.run(rows(2), try_number=try_number)
        assert bench.posts() == 0

    def test_asks_nothing_where_what_was_done_can_not_be_read(self, bench, store):
        store.values["getimg_batch_0000"] = json.dumps({"epoch": 3, "entries": "?"})
        with pytest.raises(errors.GetimgError, match="Delete 'getimg_batch_0000' from the task's state"):
            bench.run(rows(2))
        assert bench.posts() == 0

    def test_that_is_stopped_before_it_pays_again_says_what_was_billed(self, bench, store):
        bench.run(rows(1), s3_key=f"s3://{bench.bucket}/x/{{sha256}}.{{extension}}")
        change_entries(store, gone, notes=False)
        error = bench.failure(rows(1), try_number=2, on_unknown_outcome="resubmit", max_cost=PRICE)
        assert str(error).startswith(
            "0 of 1 rows are saved, 1 was billed (0.0025 USD in all), 1 was not sent. The batch was stopped: 0.0025 USD were"
        )
        assert error.generation_ids == (bench.manifest()[0]["generation_id"],)


class TestClear:
    def test_leaves_what_is_there_and_pays_for_the_rest(self, bench):
        bench.run(rows(3))
        summary = bench.run(rows(5), max_tries=7, try_number=5)
        assert (summary["saved"], summary["reused"], summary["total_cost"]) == (5, 3, 2 * PRICE)
        assert bench.billed() == [row["prompt"] for row in rows(5)]
        assert [line["outcome"] for line in bench.manifest()] == ["reused"] * 3 + ["saved"] * 2
        assert all(line["sha256"] and line["generation_id"] for line in bench.manifest())

    @pytest.mark.parametrize("may_list", [True, False])
    def test_without_permission_to_read_asks_nothing_where_a_listing_shows_an_object(
        self, bench, monkeypatch, seaweedfs, may_list
    ):
        bench.client.put_object(Bucket=bench.bucket, Key="night/000.webp", Body=b"mine")
        # Its key begins with that of the second row.
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

    def test_of_many_rows_finds_what_is_there_by_one_listing(self, bench, monkeypatch, seaweedfs):
        bench.run(rows(20), concurrency=20)
        bench.client.delete_object(Bucket=bench.bucket, Key="night/007.jpg")
        with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
            monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", proxy.aws_connection(seaweedfs.aws_connection()))
            summary = bench.run(rows(21), max_tries=7, try_number=5, concurrency=21)
            assert (summary["saved"], summary["reused"], bench.posts()) == (21, 19, 22)
            operations = proxy.operations()
            assert operations.count("ListObjectsV2") == 1
            # What is there is looked at, and nothing else.
            assert operations.count("HeadObject") == 19
            proxy.clear()
            # Without the permission to list, each is looked at.
            proxy.set_faults(
                [{"kind": "status", "code": "AccessDenied", "operation": "ListObjectsV2", "times": 9}]
            )
            assert bench.run(rows(22), max_tries=11, try_number=9, concurrency=22)["reused"] == 21
            assert proxy.operations().count("HeadObject") == 22
        assert bench.posts() == 23

    @pytest.mark.parametrize("if_exists", ["skip", "fail"])
    def test_pays_for_nothing_that_could_not_be_saved(self, bench, if_exists):
        bench.client.put_object(Bucket=bench.bucket, Key="night/001.jpg", Body=b"theirs")
        error = bench.failure(rows(3), if_exists=if_exists)
        why = "was not made from this request" if if_exists == "skip" else "if_exists is 'fail'"
        assert f"night/001.jpg already exists, and {why}. No request was sent." in str(error)
        assert len(bench.billed()) == 2
        assert bench.files()["night/001.jpg"] == b"theirs"

    def test_regenerates_all_under_replace(self, bench):
        bench.run(rows(2))
        before = bench.files()
        assert bench.run(rows(2), max_tries=7, try_number=5, if_exists="replace")["reused"] == 0
        assert bench.posts() == 4
        assert bench.files().keys() == before.keys()


class TestFailures:
    def test_of_one_row_stop_no_other_and_are_collected(self, bench):
        requests = rows(6)
        requests[2]["prompt"] = "gore"
        requests[4]["model"] = "there-is-none"
        error = bench.failure(requests)
        assert str(error).startswith(
            "4 of 6 rows are saved, 4 were billed (0.0100 USD in all), 2 failed. Row 2: getimg.ai refused the "
        )
        assert "Row 4: getimg.ai refused the request (400 " in str(error)
        assert f"All rows are in s3://{bench.bucket}/{MANIFEST}. While its URL works, neither a retry" in str(
            error
        )
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL
        assert [line["outcome"] for line in bench.manifest()] == [
            "saved",
            "saved",
            "failed",
            "saved",
            "failed",
            "saved",
        ]
        assert "422" in bench.manifest()[2]["error"]

    def test_of_one_file_do_not_lose_the_others_of_its_response(self, bench):
        play(
            bench.simulator,
            {"on": "image", "kind": "response", "data": [{"$file": 0}, {"$file": 1}]},
            {"on": "download", "kind": "file", "bytes": "html", "times": 2},
        )
        error = bench.failure(rows(1))
        assert "brought a web page instead of an image" in str(error)
        assert list(bench.files()) == ["night/000-1.jpg"]

    @pytest.mark.parametrize("max_failures", [2, "2", 0.34, "34%"])
    def test_are_let_pass_up_to_max_failures(self, bench, max_failures):
        requests = rows(6)
        requests[2]["prompt"] = requests[4]["prompt"] = "gore"
        summary = bench.run(requests, max_failures=max_failures)
        assert (summary["saved"], summary["failed"]) == (4, 2)
        requests[0]["prompt"] = "torture"
        assert "max_failures allows 2." in str(
            bench.failure(requests, max_failures=max_failures, try_number=2)
        )

    def test_of_an_empty_account_stop_the_batch_with_what_is_done_saved(self, bench):
        bench.simulator.settings(latency=0.05)
        bench.simulator.balance = str(4 * PRICE)
        error = bench.failure(rows(20), concurrency=2)
        assert len(bench.files()) == len(bench.billed()) == 4
        assert bench.posts() <= 6
        assert str(error).startswith("4 of 20 rows are saved, ")
        assert "The batch was stopped: getimg.ai refused the request (402 quota_exceeded): " in str(error)
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL
        outcomes = [line["outcome"] for line in bench.manifest()]
        assert outcomes.count("saved") == 4
        assert outcomes.count("not_sent") >= 14

    def test_of_the_key_stop_the_batch(self, bench, monkeypatch):
        wrong = json.dumps({"conn_type": "getimg", "host": bench.simulator.url, "password": "sk_wrong"})
        monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", wrong)
        error = bench.failure(rows(20), concurrency=2)
        assert isinstance(error.failures[0], errors.AuthenticationError)
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL
        assert bench.files() == {}
        assert "sk_wrong" not in str(error)
        # Both requests in flight fail alike: the message says it once.
        assert str(error).count(error.failures[0].message) == 1
        assert str(error).endswith(" Nothing was billed.")

    def test_of_unknown_outcome_stop_the_batch_after_five_consecutive_ones(self, bench):
        play(bench.simulator, {"on": "image", "kind": "status", "status": 503, "times": 99})
        error = bench.failure(rows(20), concurrency=1)
        assert bench.posts() == 5
        assert "5 consecutive requests ended without a response, and each may have been billed." in str(error)
        assert ", 5 more requests may have been billed, 5 failed, 15 were not sent." in str(error)
        # The rows that were not sent are worth another try; the five are not.
        assert RETRY_POLICY.evaluate(error, 1, 3).action is not RetryAction.FAIL

    def test_of_s3_are_found_before_the_first_request(self, bench, monkeypatch, seaweedfs):
        with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
            monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", proxy.aws_connection(seaweedfs.aws_connection()))
            proxy.set_faults(
                [{"kind": "status", "code": "AccessDenied", "operation": "PutObject", "times": 999}]
            )
            error = bench.failure(rows(60), concurrency=2, transfer_concurrency=2)
        assert bench.posts() == 0
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL

    def test_of_the_network_stop_the_paying_at_the_first(self, bench):
        inside = [{"$file": 0, "url": "https://10.1.2.3/x?sig=signature"}]
        play(bench.simulator, {"on": "image", "kind": "response", "data": inside, "times": 99})
        error = bench.failure(rows(60), concurrency=2)
        assert "which is neither the connection's base URL nor in its allowed_networks" in str(error)
        assert "sig=" not in str(error)
        # What was on its way with it.
        assert 1 <= bench.posts() <= 4
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL

    def test_of_ours_are_raised_after_what_runs_has_ended(self, bench, monkeypatch):
        def broken(*_: Any) -> None:
            raise ZeroDivisionError("a fault of ours")

        monkeypatch.setattr("airflow_provider_getimg.batch.report._slim", broken)
        with pytest.raises(ZeroDivisionError):
            bench.run(rows(20), concurrency=1)
        assert len(bench.files()) == bench.posts() < 20


class TestBudget:
    def test_that_does_not_suffice_fails_before_the_first_request(self, bench):
        with pytest.raises(errors.CostLimitError) as error:
            bench.run(rows(5), max_cost="0.0124")
        assert str(error.value) == (
            "5 images cost 0.0125 USD, more than max_cost (0.0124 USD): nothing was sent. Nothing was billed."
        )
        assert bench.posts() == 0
        assert bench.objects() == {}

    def test_that_suffices_is_enough(self, bench):
        assert bench.run(rows(5), max_cost="0.0125")["saved"] == 5

    def test_counts_what_earlier_tries_spent(self, bench):
        play(bench.simulator, {"on": "image", "kind": "drop_after_billing"})
        bench.failure(rows(4), max_cost=4 * PRICE)
        error = bench.failure(rows(4), try_number=2, max_cost=4 * PRICE, on_unknown_outcome="resubmit")
        assert "stopped: 1 image costs 0.0025 USD on top of 0.0100 USD that were, or may" in str(error)
        assert RETRY_POLICY.evaluate(error, 2, 3).action is RetryAction.FAIL
        assert bench.posts() == 4

    def test_counts_what_earlier_tries_spent_on_rows_that_have_changed(self, bench):
        play(bench.simulator, {"on": "image", "kind": "drop_after_billing"})
        bench.failure(rows(2, labels={}), max_cost=3 * PRICE)
        others = [{"prompt": f"{row['prompt']} at night"} for row in rows(2)]
        error = bench.failure(others, try_number=2, max_cost=3 * PRICE)
        assert "2 images cost 0.0050 USD on top of 0.0050 USD that were, or may" in str(error)
        assert bench.posts() == 2

    def test_of_unknown_price_is_an_error(self, bench):
        with pytest.raises(errors.GetimgError):
            bench.run([{"prompt": "x", "model": "there-is-none"}], max_cost=1)
        assert bench.posts() == 0


class TestBalance:
    def test_that_does_not_cover_the_batch_is_reported_before_the_first_request(self, bench):
        bench.simulator.balance = "0.0124"
        with pytest.raises(errors.InsufficientBalanceError) as error:
            bench.run(rows(5), check_balance=True)
        assert str(error.value) == (
            "The account's balance must be at least 0.0125 USD, got 0.0124 USD. API credits are prepaid and separate from the "
            "consumer plans. Nothing was billed."
        )
        assert RETRY_POLICY.evaluate(error.value, 1, 3).action is RetryAction.FAIL
        assert bench.posts() == 0

    def test_that_covers_the_remaining_rows_is_enough(self, bench):
        bench.run(rows(3))
        bench.simulator.balance = "0.0050"
        assert bench.run(rows(5), try_number=2, check_balance="true")["saved"] == 5

    def test_is_not_looked_at_unless_that_is_wanted(self, bench):
        bench.simulator.balance = "0.0050"
        error = bench.failure(rows(5), concurrency=1)
        # Which two of the rows is not promised.
        assert len(bench.billed()) == 2
        assert "API credits are prepaid" in str(error)


class TestPace:
    def test_no_row_fails_for_a_rate_limit(self, bench):
        bench.simulator.settings(concurrency=3, latency=0.05)
        assert bench.run(rows(30), concurrency=16)["saved"] == 30
        refused = [post for post in bench.simulator.ledger.raw()["posts"] if post["status"] == 429]
        # The opening of slots finds the limit; after it there are but a few probes.
        assert 1 <= len(refused) <= 6

    @pytest.mark.parametrize("concurrency", [5, 64])
    def test_a_real_account_is_used_fully_and_refuses_little(self, bench, concurrency):
        # Faster, a busy machine's own delays would count as seconds, and refusals come of them.
        bench.simulator.settings(preset="account", time_scale=25)
        assert bench.run(rows(100), concurrency=concurrency)["saved"] == 100
        posts = bench.simulator.ledger.raw()["posts"]
        answered = [post for post in posts if post["status"] == 200]
        assert len(posts) - len(answered) <= 0.05 * len(posts)
        began, ended = (
            [datetime.fromisoformat(post[name]) for post in answered] for name in ("received_at", "ended_at")
        )
        busy = sum((end - begin for begin, end in zip(began, ended, strict=True)), timedelta(0))
        # Five at a time, until the last was sent; less on a busy machine.
        assert busy / (max(began) - min(began)) > 0.8 * 5

    def test_a_wait_that_is_too_long_ends_the_try(self, bench):
        play(
            bench.simulator,
            {"on": "image", "kind": "status", "status": 429, "headers": {"Retry-After": "120"}, "times": 99},
        )
        error = bench.failure(rows(6), rate_limit_wait=60)
        decision = RETRY_POLICY.evaluate(error, 1, 3)
        assert decision.action is RetryAction.RETRY
        # A request that was waiting for its turn reports the remaining wait.
        assert 100 <= decision.retry_delay.total_seconds() <= 120


class TestTheEnd:
    def test_on_kill_stops_asking_and_saves_what_has_arrived(self, bench, monkeypatch):
        bench.simulator.settings(latency=0.5)
        operator = bench.operator(rows(30), concurrency=2)
        monkeypatch.setattr(REPORT, lambda *_, **__: bench.posts() >= 2 and operator.on_kill())
        with pytest.raises(
            errors.BatchIncompleteError, match=r"The batch was stopped: The task was terminated\."
        ):
            operator.execute(bench.context())
        assert 2 <= bench.posts() < 30
        assert len(bench.files()) == bench.posts()
        summary = bench.run(rows(30), try_number=2, concurrency=30)
        assert (summary["saved"], bench.posts()) == (30, 30)

    def test_a_time_out_stops_asking_and_saves_what_has_arrived(self, bench, monkeypatch):
        bench.simulator.settings(latency=0.5)
        operator = bench.operator(rows(30), concurrency=2)

        def time_out(*_: Any, **__: Any) -> None:
            # Once, and where Airflow's alarm meets the main thread as well.
            if bench.posts() >= 2 and not operator._stop.event.is_set():
                raise AirflowTaskTimeout("time is up")

        monkeypatch.setattr(REPORT, time_out)
        with pytest.raises(AirflowTaskTimeout):
            operator.execute(bench.context())
        assert 2 <= bench.posts() < 30
        assert len(bench.files()) == bench.posts()
        assert [line["outcome"] for line in bench.manifest()].count("saved") == bench.posts()
        assert bench.run(rows(30), try_number=2, concurrency=30)["saved"] == 30
        assert bench.posts() == 30

    def test_an_operator_that_was_killed_before_it_began_sends_nothing(self, bench):
        operator = bench.operator(rows(3))
        operator.on_kill()
        with pytest.raises(
            errors.BatchIncompleteError,
            match=r"^0 of 3 rows are saved, 0 were billed \(0 USD in all\), 3 were not sent\.",
        ):
            operator.execute(bench.context())
        assert bench.posts() == 0


def test_it_shows_nothing_signed(bench):
    operator = bench.operator(rows(1, images=["https://a.test/x.png?X-Amz-Signature=abc"]))
    operator.render_template_fields({})
    shown = json.dumps(operator.requests.serialize())
    assert "https://a.test/x.png" in shown
    assert "Signature" not in shown


def test_the_manifest_takes_any_text_and_no_signature(bench):
    labels = {"note": "see https://h.test/f?exp=1&sig=abcdef"}
    bench.run([{"prompt": "A fox", "labels": labels}])
    [line] = bench.manifest()
    assert line["request"]["labels"] == {"note": "see https://h.test/f?..."}


def test_it_can_be_copied(bench):
    operator = copy.deepcopy(bench.operator(rows(1)))
    assert operator.execute(bench.context())["saved"] == 1
