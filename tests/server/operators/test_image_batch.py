# SPDX-License-Identifier: Apache-2.0
"""
Batches in one process, with a real S3 server and the simulator.

``tests/integration`` runs them in Airflow's own processes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from datetime import datetime, timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.batch.stop import Stop
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.version_compat import RetryAction
from tests.server.operators.batch_bench import MANIFEST, MODEL, PRICE, play, rows
from tests.support.raw_servers import RawServer, response
from tests.support.s3_faults import S3FaultProxy

REPORT = "airflow_provider_getimg.batch.progress.Progress.report"


class TestRows:
    def test_every_row_is_generated_once_and_saved_to_s3(self, bench):
        summary = bench.run(rows(10))
        assert summary == {
            "requested": 10,
            "saved": 10,
            "reused": 0,
            "failed": 0,
            "not_sent": 0,
            "total_cost": 10 * PRICE,
            "manifest": f"s3://{bench.bucket}/{MANIFEST}",
            "aws_conn_id": "aws_default",
            "uris": [f"s3://{bench.bucket}/night/{number:03}.jpg" for number in range(10)],
        }
        assert summary == json.loads(json.dumps(summary))
        assert bench.billed() == [row["prompt"] for row in rows(10)]
        assert sorted(bench.files()) == [f"night/{number:03}.jpg" for number in range(10)]

    @pytest.mark.parametrize("if_exists", ["skip", "replace"])
    def test_row_fails_if_the_api_repeats_an_id_and_another_row_has_its_key(self, bench, if_exists):
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

    def test_every_row_is_described_by_a_manifest_line(self, bench):
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

    def test_key_may_contain_the_fields_and_labels_of_its_row(self, bench):
        requests = [
            {"prompt": "A fox", "aspect_ratio": "1:1", "labels": {"sku": "A-1", "size": 7}},
            {"prompt": "A fox", "output_format": "png", "labels": {"sku": "B-2", "size": 12}},
        ]
        bench.run(
            requests, s3_bucket=bench.bucket, s3_key="{sku}/{size:03}-{aspect_ratio}-{model}.{extension}"
        )
        assert sorted(bench.files()) == [f"A-1/007-1:1-{MODEL}.jpg", f"B-2/012-default-{MODEL}.png"]

    def test_identical_rows_are_each_generated_and_each_reused_by_a_retry(self, bench):
        assert bench.run([{"prompt": "A fox"}] * 3)["saved"] == 3
        assert bench.billed() == ["A fox"] * 3
        assert bench.run([{"prompt": "A fox"}] * 3, try_number=2)["reused"] == 3
        assert bench.posts() == 3

    def test_missing_requests_file_in_a_retry_reports_what_earlier_tries_were_billed(self, bench):
        refused = {"prompt": "A wolf", "model": "there-is-none"}
        bench.failure([*rows(2), refused])
        with pytest.raises(errors.InvalidInputError) as error:
            bench.run(f"s3://{bench.bucket}/gone.jsonl", try_number=2)
        assert str(error.value).startswith("2 generations were billed (0.0050 USD together) and are saved. ")

    def test_rows_may_come_from_a_file_in_s3(self, bench):
        lines = "\n".join(json.dumps(row) for row in rows(3)) + "\n\n"
        bench.client.put_object(Bucket=bench.bucket, Key="in.jsonl", Body=lines.encode())
        assert bench.run(f"s3://{bench.bucket}/in.jsonl")["saved"] == 3

    def test_role_denied_by_sts_is_reported_as_a_connection_error(self, bench, monkeypatch):
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

    def test_empty_list_succeeds_with_an_empty_manifest(self, bench):
        summary = bench.run([])
        assert (summary["requested"], summary["saved"], summary["uris"]) == (0, 0, [])
        # A downstream task that reads the manifest finds an empty one.
        assert list(bench.objects().values()) == [b""]
        assert summary["manifest"] == f"s3://{bench.bucket}/{next(iter(bench.objects()))}"


class TestInvalidInput:
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
            ({"on": "image", "kind": "drop_after_billing"}, "^An earlier request may have been billed. "),
        ],
        ids=["owed", "unknown"],
    )
    def test_input_error_in_a_retry_reports_what_the_earlier_try_was_billed(self, bench, fault, bill, fields):
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
                "requests[0]: labels must be a dict of your own names",
            ),
            (
                {"requests": [{"prompt": "x", "labels": {"row": 1}}]},
                "requests[0]: labels must not contain 'row', which is a",
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
                "s3_key gives rows 0 and 1 the same key 'same.jpg': distinguish them with",
            ),
            (
                {"s3_key": "s3://b/{prompt}/../x"},
                "requests[0]: s3_key gives the key 'A red fox, number 0/../x': no",
            ),
            ({"s3_key": "s3://b/{prompt:x}"}, "requests[0]: s3_key has {prompt:x}, which can't format 'A"),
            (
                {"s3_key": "s3://b/{width}.jpg"},
                "s3_key gives rows 0 and 1 the same key '99999.jpg': distinguish them",
            ),
            ({"s3_key": "s3://b/{row}.png"}, "requests[0]: s3_key must end in {extension}, or in .jpg where"),
            ({"s3_key": "s3://b/{row}-{sku}"}, "s3_key has the unknown placeholder '{sku}'. Known"),
            (
                {
                    "requests": [{"prompt": "x", "labels": {"sku": 1}}, {"prompt": "y"}],
                    "s3_key": "s3://b/{row}-{sku}",
                },
                "requests[1] has no label 'sku', which s3_key uses.",
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
    def test_invalid_input_is_rejected_before_anything_is_sent_or_written(
        self, bench, store, fields, sentence
    ):
        with pytest.raises(errors.InvalidInputError) as error:
            bench.run(**({"requests": rows(2)} | fields))
        assert sentence in str(error.value).replace(f"s3://{bench.bucket}", "s3://b")
        assert str(error.value).endswith(" Nothing was billed.")
        assert bench.posts() == 0
        assert bench.objects() == {}
        assert store.values == {}

    def test_error_names_the_first_three_invalid_rows_and_counts_the_rest(self, bench):
        with pytest.raises(errors.InvalidInputError, match=r"requests\[0\].*requests\[2\]: .* And 2 more\. "):
            bench.run([{"prompt": ""}] * 5)

    def test_error_names_the_invalid_line_of_a_requests_file(self, bench):
        bench.client.put_object(Bucket=bench.bucket, Key="in.jsonl", Body=b'{"prompt": "x"}\n\nnot json\n')
        with pytest.raises(errors.InvalidInputError, match=r"in\.jsonl line 3 must be a JSON object with"):
            bench.run(f"s3://{bench.bucket}/in.jsonl")

    def test_missing_requests_file_or_bucket_fails_before_any_request(self, bench):
        with pytest.raises(errors.InvalidInputError, match=r"there-is-none\.jsonl\) can't be read from S3"):
            bench.run(f"s3://{bench.bucket}/there-is-none.jsonl")
        error = bench.failure(rows(1), s3_key="s3://there-is-none/{row}")
        assert str(error).startswith(
            "0 of 1 rows are saved, 0 were billed (0 USD in total), 1 was not sent. "
        )
        assert "there is no bucket 'there-is-none'." in str(error)
        assert str(error).endswith(" Nothing was billed.")
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL
        assert bench.posts() == 0


class TestFailures:
    def test_failed_rows_do_not_stop_the_others_and_are_all_reported(self, bench):
        requests = rows(6)
        requests[2]["prompt"] = "gore"
        requests[4]["model"] = "there-is-none"
        error = bench.failure(requests)
        assert str(error).startswith(
            "4 of 6 rows are saved, 4 were billed (0.0100 USD in total), 2 failed. Row 2: getimg.ai refused the "
        )
        assert "Row 4: getimg.ai refused the request (400 " in str(error)
        # Each billed image is saved: nothing is left for a retry.
        assert str(error).endswith(f"All rows are in s3://{bench.bucket}/{MANIFEST}.")
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

    def test_failed_file_does_not_prevent_saving_the_others_of_its_response(self, bench):
        play(
            bench.simulator,
            {"on": "image", "kind": "response", "data": [{"$file": 0}, {"$file": 1}]},
            {"on": "download", "kind": "file", "bytes": "html", "times": 2},
        )
        error = bench.failure(rows(1))
        assert "returned a web page instead of an image" in str(error)
        assert list(bench.files()) == ["night/000-1.jpg"]

    @pytest.mark.parametrize("max_failures", [2, "2", 0.34, "34%"])
    def test_batch_fails_only_with_more_than_max_failures_failed_rows(self, bench, max_failures):
        requests = rows(6)
        requests[2]["prompt"] = requests[4]["prompt"] = "gore"
        summary = bench.run(requests, max_failures=max_failures)
        assert (summary["saved"], summary["failed"]) == (4, 2)
        requests[0]["prompt"] = "torture"
        assert "max_failures allows 2." in str(
            bench.failure(requests, max_failures=max_failures, try_number=2)
        )

    def test_batch_stops_when_the_balance_runs_out_and_saves_every_billed_image(self, bench):
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

    def test_rejected_api_key_stops_the_batch(self, bench, monkeypatch):
        wrong = json.dumps({"conn_type": "getimg", "host": bench.simulator.url, "password": "sk_wrong"})
        monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", wrong)
        error = bench.failure(rows(20), concurrency=2)
        assert isinstance(error.failures[0], errors.AuthenticationError)
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL
        assert bench.files() == {}
        assert "sk_wrong" not in str(error)
        # Both requests in flight fail with the same error, which the message reports once.
        assert str(error).count(error.failures[0].message) == 1
        assert str(error).endswith(" Nothing was billed.")

    def test_five_consecutive_unknown_outcomes_stop_the_batch(self, bench):
        play(bench.simulator, {"on": "image", "kind": "status", "status": 503, "times": 99})
        error = bench.failure(rows(20), concurrency=1)
        assert bench.posts() == 5
        assert "5 consecutive requests ended without a response, and each may have been billed." in str(error)
        assert ", 5 more requests may have been billed, 5 failed, 15 were not sent." in str(error)
        # The rows that were not sent are worth a retry; the five are not.
        assert RETRY_POLICY.evaluate(error, 1, 3).action is not RetryAction.FAIL

    @pytest.mark.parametrize(("status", "sent"), [(308, 1), (402, 1), (407, 1), (503, 5)])
    def test_batch_stops_before_the_slot_of_the_last_failed_request_is_released(
        self, bench, monkeypatch, status, sent
    ):
        def late(*args: Any) -> None:
            # Another sender waits for the slot.
            time.sleep(0.05)
            stop(*args)

        stop = Stop.set
        monkeypatch.setattr(Stop, "set", late)
        play(bench.simulator, {"on": "image", "kind": "status", "status": status, "times": 99})
        bench.failure(rows(20), concurrency=1)
        assert bench.posts() == sent

    def test_proxy_that_wants_a_password_once_stops_no_other_row(self, bench):
        bench.simulator.faults.add({"on": "image", "kind": "slow_first_byte", "seconds": 0, "times": 2})
        bench.simulator.faults.add({"on": "image", "kind": "status", "status": 407})
        assert bench.run(rows(6), concurrency=1, max_failures=1)["saved"] == 5

    def test_denied_s3_write_is_detected_before_the_first_request(self, bench, monkeypatch, seaweedfs):
        with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
            monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", proxy.aws_connection(seaweedfs.aws_connection()))
            proxy.set_faults(
                [{"kind": "status", "code": "AccessDenied", "operation": "PutObject", "times": 999}]
            )
            error = bench.failure(rows(60), concurrency=2, transfer_concurrency=2)
        assert bench.posts() == 0
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL

    def test_first_image_url_outside_the_allowed_networks_stops_the_batch(self, bench):
        inside = [{"$file": 0, "url": "https://10.1.2.3/x?sig=signature"}]
        play(bench.simulator, {"on": "image", "kind": "response", "data": inside, "times": 99})
        error = bench.failure(rows(60), concurrency=2)
        assert "which is neither the connection's base URL nor in its allowed_networks" in str(error)
        assert "sig=" not in str(error)
        # Includes the requests in flight at that time.
        assert 1 <= bench.posts() <= 4
        assert RETRY_POLICY.evaluate(error, 1, 3).action is RetryAction.FAIL

    def test_internal_error_is_raised_once_the_images_already_requested_are_saved(self, bench, monkeypatch):
        def broken(*_: Any) -> None:
            raise ZeroDivisionError("a fault of ours")

        monkeypatch.setattr("airflow_provider_getimg.batch.report._without_url", broken)
        with pytest.raises(ZeroDivisionError):
            bench.run(rows(20), concurrency=1)
        assert len(bench.files()) == bench.posts() < 20


class TestMaxCost:
    def test_batch_over_max_cost_fails_before_the_first_request(self, bench):
        with pytest.raises(errors.CostLimitError) as error:
            bench.run(rows(5), max_cost="0.0124")
        assert str(error.value) == (
            "5 images cost 0.0125 USD, more than max_cost (0.0124 USD): nothing was sent. Nothing was billed."
        )
        assert bench.posts() == 0
        assert bench.objects() == {}

    def test_batch_that_costs_exactly_max_cost_is_generated(self, bench):
        assert bench.run(rows(5), max_cost="0.0125")["saved"] == 5

    def test_max_cost_includes_what_earlier_tries_spent(self, bench):
        play(bench.simulator, {"on": "image", "kind": "drop_after_billing"})
        bench.failure(rows(4), max_cost=4 * PRICE)
        error = bench.failure(rows(4), try_number=2, max_cost=4 * PRICE, on_unknown_outcome="resubmit")
        assert "stopped: 1 image costs 0.0025 USD on top of 0.0100 USD that were, or may" in str(error)
        assert RETRY_POLICY.evaluate(error, 2, 3).action is RetryAction.FAIL
        assert bench.posts() == 4

    def test_max_cost_includes_what_earlier_tries_spent_on_rows_that_have_changed(self, bench):
        play(bench.simulator, {"on": "image", "kind": "drop_after_billing"})
        bench.failure(rows(2, labels={}), max_cost=3 * PRICE)
        others = [{"prompt": f"{row['prompt']} at night"} for row in rows(2)]
        error = bench.failure(others, try_number=2, max_cost=3 * PRICE)
        assert "2 images cost 0.0050 USD on top of 0.0050 USD that were, or may" in str(error)
        assert bench.posts() == 2

    def test_unknown_model_with_max_cost_is_rejected_before_the_first_request(self, bench):
        with pytest.raises(errors.GetimgError):
            bench.run([{"prompt": "x", "model": "there-is-none"}], max_cost=1)
        assert bench.posts() == 0


class TestBalance:
    def test_insufficient_balance_fails_the_batch_before_the_first_request(self, bench):
        bench.simulator.balance = "0.0124"
        with pytest.raises(errors.InsufficientBalanceError) as error:
            bench.run(rows(5), check_balance=True)
        assert str(error.value) == (
            "The account's balance must be at least 0.0125 USD, got 0.0124 USD. API credits are prepaid and separate from the "
            "consumer plans. Nothing was billed."
        )
        assert RETRY_POLICY.evaluate(error.value, 1, 3).action is RetryAction.FAIL
        assert bench.posts() == 0

    def test_balance_that_covers_the_remaining_rows_is_enough(self, bench):
        bench.run(rows(3))
        bench.simulator.balance = "0.0050"
        assert bench.run(rows(5), try_number=2, check_balance="true")["saved"] == 5

    def test_balance_is_not_checked_by_default(self, bench):
        bench.simulator.balance = "0.0050"
        error = bench.failure(rows(5), concurrency=1)
        # Which two rows are billed is not guaranteed.
        assert len(bench.billed()) == 2
        assert "API credits are prepaid" in str(error)


class TestRateLimits:
    def test_no_row_fails_because_of_a_rate_limit(self, bench):
        bench.simulator.settings(concurrency=3, latency=0.05)
        assert bench.run(rows(30), concurrency=16)["saved"] == 30
        refused = [post for post in bench.simulator.ledger.raw()["posts"] if post["status"] == 429]
        # Opening slots finds the limit; after that, only a few probes exceed it.
        assert 1 <= len(refused) <= 6

    @pytest.mark.parametrize("concurrency", [5, 64])
    def test_limits_of_a_real_account_are_used_fully_with_few_rejected_requests(self, bench, concurrency):
        # At a larger time scale, the delays of a busy machine would count as seconds and cause rejections.
        bench.simulator.settings(preset="account", time_scale=20)
        assert bench.run(rows(100), concurrency=concurrency)["saved"] == 100
        posts = bench.simulator.ledger.raw()["posts"]
        answered = [post for post in posts if post["status"] == 200]
        assert len(posts) - len(answered) <= 0.05 * len(posts)
        began, ended = (
            [datetime.fromisoformat(post[name]) for post in answered] for name in ("received_at", "ended_at")
        )
        busy = sum((end - begin for begin, end in zip(began, ended, strict=True)), timedelta(0))
        # Five at a time until the last request was sent; fewer on a busy machine.
        assert busy / (max(began) - min(began)) > 0.8 * 5

    def test_rate_limit_longer_than_rate_limit_wait_ends_the_try(self, bench):
        play(
            bench.simulator,
            {"on": "image", "kind": "status", "status": 429, "headers": {"Retry-After": "120"}, "times": 99},
        )
        error = bench.failure(rows(6), rate_limit_wait=60)
        decision = RETRY_POLICY.evaluate(error, 1, 3)
        assert decision.action is RetryAction.RETRY
        # A request that was waiting to be sent reports the remaining wait.
        assert 100 <= decision.retry_delay.total_seconds() <= 120


class TestTermination:
    def test_on_kill_stops_sending_and_saves_every_image_already_requested(self, bench, monkeypatch):
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

    def test_execution_timeout_stops_sending_and_saves_every_image_already_requested(
        self, bench, monkeypatch
    ):
        bench.simulator.settings(latency=0.5)
        operator = bench.operator(rows(30), concurrency=2)

        def time_out(*_: Any, **__: Any) -> None:
            # Once, and in the main thread, as Airflow's alarm does.
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

    def test_operator_killed_before_it_starts_sends_nothing(self, bench):
        operator = bench.operator(rows(3))
        operator.on_kill()
        with pytest.raises(
            errors.BatchIncompleteError,
            match=r"^0 of 3 rows are saved, 0 were billed \(0 USD in total\), 3 were not sent\.",
        ):
            operator.execute(bench.context())
        assert bench.posts() == 0


def test_signatures_are_removed_from_rendered_requests(bench):
    operator = bench.operator(rows(1, images=["https://a.test/x.png?X-Amz-Signature=abc"]))
    operator.render_template_fields({})
    shown = json.dumps(operator.requests.serialize())
    assert "https://a.test/x.png" in shown
    assert "Signature" not in shown


def test_signature_in_a_label_is_redacted_in_the_manifest(bench):
    labels = {"note": "see https://h.test/f?exp=1&sig=abcdef"}
    bench.run([{"prompt": "A fox", "labels": labels}])
    [line] = bench.manifest()
    assert line["request"]["labels"] == {"note": "see https://h.test/f?..."}


def test_copied_operator_runs(bench):
    operator = copy.deepcopy(bench.operator(rows(1)))
    assert operator.execute(bench.context())["saved"] == 1
