# SPDX-License-Identifier: Apache-2.0
"""``GenerateImagesToS3Operator`` against the simulator and a real S3 server: account limits, and real task processes."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from tests.conftest import STACK_BUCKET
from tests.support.s3_faults import S3FaultProxy, open_uploads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow, SeaweedFS

MODEL = "seedream-5-lite"
PRICE = 0.04
WINDOW = timedelta(seconds=60)
# The size of each file. With it, the simulator draws a single image and pads it differently for each file.
FILE_BYTES = 100_000


def rows(count: int, different: Mapping[int, dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return requests with different prompts, some of them with additional fields."""
    made = [{"prompt": f"Picture {number}"} for number in range(count)]
    for number, fields in (different or {}).items():
        made[number] |= fields
        made[number]["prompt"] += f" ({number})"
    return made


def read_object(seaweedfs: SeaweedFS, uri: str) -> bytes:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return seaweedfs.client().get_object(Bucket=bucket, Key=key)["Body"].read()


def manifest_of(seaweedfs: SeaweedFS, uri: str) -> list[dict[str, Any]]:
    """Return a manifest's lines."""
    return [json.loads(line) for line in read_object(seaweedfs, uri).splitlines()]


def saved_objects(
    seaweedfs: SeaweedFS, prefix: str, but: str | None = None, bucket: str = STACK_BUCKET
) -> dict[str, str]:
    """Return the SHA-256 of each object below a prefix except ``but``, by URI, after checking that no upload is open."""
    client = seaweedfs.client()
    assert [key for key in open_uploads(client, bucket) if key.startswith(f"{prefix}/")] == []
    found = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for entry in page.get("Contents", []):
            content = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            found[f"s3://{bucket}/{entry['Key']}"] = hashlib.sha256(content).hexdigest()
    if but is not None:
        del found[but]
    return found


def last_log(ended: Any) -> str:
    """Return the log of the last try: on a busy machine, Airflow may lose a try before it begins."""
    return ended.log(try_number=ended.tries())


def posts_by_status(simulator: GetimgSimulator) -> Counter[int | None]:
    return Counter(post["status"] for post in simulator.ledger.raw()["posts"])


def billed_prompts(simulator: GetimgSimulator) -> Counter[str]:
    return Counter(post["prompt"] for post in simulator.ledger.raw()["posts"] if post["billed"])


@pytest.fixture
def execute(monkeypatch, getimg_default, seaweedfs: SeaweedFS, bucket: str, context):
    """Return a function that runs a try of a batch in this process, into an empty bucket, and returns its summary."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())

    def execute_try(requests: list[dict[str, Any]], *, try_number: int = 1, **fields: Any) -> dict[str, Any]:
        operator = GenerateImagesToS3Operator(
            task_id="generate",
            requests=requests,
            defaults={"model": MODEL},
            s3_bucket=bucket,
            s3_key="{row:04}.{extension}",
            **fields,
        )
        return operator.execute(context(try_number=try_number))

    return execute_try


class TestAccountLimits:
    """Measured by which requests the simulator accepted, and when."""

    def accepted_at(self, simulator: GetimgSimulator) -> list[datetime]:
        return sorted(
            datetime.fromisoformat(post["received_at"])
            for post in simulator.ledger.raw()["posts"]
            if post["status"] == 200
        )

    def test_concurrency_above_the_account_limit_fails_no_row_and_uses_most_of_the_limit(
        self, simulator, execute
    ):
        latency, limit, count = 0.5, 5, 60
        simulator.settings(latency=latency, concurrency=limit)
        summary = execute(rows(count), concurrency=16)
        assert (summary["saved"], summary["failed"]) == (count, 0)
        accepted = self.accepted_at(simulator)
        assert len(accepted) == count
        assert max(billed_prompts(simulator).values()) == 1
        # The initial excess over the limit, then a probe for a higher one every second or so.
        took = (accepted[-1] - accepted[0]).total_seconds() + latency
        assert posts_by_status(simulator)[429] <= (16 - limit) + 2 * took
        # Each accepted request is in flight for the length of the latency.
        assert count * latency / took >= 4

    @pytest.mark.long
    def test_100_rows_reach_90_percent_of_the_throughput_that_the_account_limits_permit(
        self, simulator, execute
    ):
        latency, limit, rpm, count = 0.5, 5, 60, 100
        simulator.settings(latency=latency, concurrency=limit, rpm=rpm)
        summary = execute(rows(count), concurrency=16)
        assert (summary["saved"], summary["failed"]) == (count, 0)
        accepted = self.accepted_at(simulator)
        assert len(accepted) == count
        assert max(billed_prompts(simulator).values()) == 1
        # The simulator counts requests in fixed minutes, which start with their first request.
        first = [moment for moment in accepted if moment < accepted[0] + WINDOW]
        assert len(first) == rpm
        possible = WINDOW.total_seconds() + (count - rpm) / limit * latency
        took = (accepted[-1] - accepted[0]).total_seconds() + latency
        print(f"{count} rows in {took:.1f} s of {possible:.1f} s, {posts_by_status(simulator)[429]} refusals")
        assert possible / took >= 0.9
        assert posts_by_status(simulator)[429] <= 2 * 16


@pytest.fixture(autouse=True)
def _files_that_are_quick_to_draw(simulator: GetimgSimulator) -> None:
    simulator.settings(file_size=FILE_BYTES)


def undisturbed(times: int, on: str = "image") -> dict[str, Any]:
    """Return a fault that changes nothing, to space out the others."""
    return {"on": on, "kind": "slow_first_byte", "seconds": 0, "times": times}


# Longer than the connection's timeout, so that the next try has to download the file.
NOT_NOW = {"on": "download", "kind": "status", "status": 503, "headers": {"Retry-After": "3000"}}


class TestLaterTry:
    """What a later try does with rows that are already paid."""

    def saved(self, seaweedfs: SeaweedFS, bucket: str) -> list[str]:
        listed = seaweedfs.client().list_objects_v2(Bucket=bucket).get("Contents", [])
        return [entry["Key"] for entry in listed if not entry["Key"].startswith("manifests/")]

    @pytest.mark.parametrize("if_exists", ["skip", "replace"])
    @pytest.mark.parametrize("on_unknown_outcome", ["fail", "resubmit"])
    def test_reuses_saved_images_whose_urls_have_expired(
        self, simulator, execute, store, if_exists, on_unknown_outcome
    ):
        simulator.faults.add(undisturbed(2), {"on": "image", "kind": "status", "status": 400})
        fields = {"if_exists": if_exists, "on_unknown_outcome": on_unknown_outcome, "concurrency": 1}
        with pytest.raises(
            errors.BatchIncompleteError,
            match=r"^5 of 6 rows are saved, 5 were billed \(0\.20 USD in total\), 1 failed\.",
        ):
            execute(rows(6), **fields)
        for key, value in store.values.items():
            store.values[key] = re.sub(
                r'"deletes_at": "[^"]+"', '"deletes_at": "2020-01-01T00:00:00Z"', value
            )
        summary = execute(rows(6), try_number=2, **fields)
        assert (summary["saved"], summary["reused"], summary["failed"]) == (6, 5, 0)
        assert set(billed_prompts(simulator).values()) == {1}

    def test_saves_paid_images_even_if_max_cost_is_used_up(self, simulator, seaweedfs, bucket, execute):
        simulator.faults.add(undisturbed(4), {"on": "image", "kind": "drop_after_billing"})
        simulator.faults.add(undisturbed(2, "download"), NOT_NOW)
        fields = {"max_cost": "0.32", "on_unknown_outcome": "resubmit", "concurrency": 1}
        with pytest.raises(
            errors.BatchIncompleteError,
            match=r"^6 of 8 rows are saved, 7 were billed \(0\.28 USD in total\), 1 more request may have been billed, 2 f",
        ):
            execute(rows(8), **fields)
        # The row whose response was lost may have been billed: sending it again could exceed max_cost.
        with pytest.raises(errors.GetimgError, match="max_cost"):
            execute(rows(8), try_number=2, **fields)
        assert len(simulator.ledger) == 8
        assert len(self.saved(seaweedfs, bucket)) == 7

    @pytest.mark.parametrize("spare", [0, 1, 2, 8])
    def test_keeps_the_total_cost_of_all_tries_within_max_cost(self, simulator, execute, spare):
        lost = [{"kind": "drop_after_billing"}, {"kind": "status", "status": 500}, {"kind": "truncate"}]
        for fault in lost * 2:
            simulator.faults.add(undisturbed(5), {"on": "image", **fault})
        simulator.settings(latency=0.05)
        most = Decimal("0.04") * (30 + spare)
        saved = 0
        for number in range(1, 5):
            try:
                fields = {"max_cost": str(most), "on_unknown_outcome": "resubmit", "retries": 3}
                saved = execute(rows(30), try_number=number, **fields)["saved"]
                break
            except errors.BatchIncompleteError:
                continue
            except errors.CostLimitError:
                break
        assert simulator.ledger.total_cost <= float(most)
        # Six responses are lost, and each counts as billed.
        assert saved == (30 if spare >= 6 else 0)


@pytest.mark.parametrize(
    ("fault", "saved"),
    [
        (None, 200),
        # A proxy's page instead of a response: it is recorded, as the request may have been billed.
        pytest.param(
            {"on": "image", "kind": "html", "body": "x" * 20_000, "times": 200, "seconds": 0.5},
            0,
            marks=pytest.mark.long,
        ),
    ],
    ids=["responses", "pages"],
)
def test_each_state_store_write_stays_below_64_kib_when_many_responses_arrive_at_once(
    simulator, execute, store, monkeypatch, fault, saved
):
    simulator.settings(latency=0.5)
    simulator.faults.add(*([fault] if fault else []))
    sizes, write = [], store.set

    def write_slowly(key: str, value: Any, **options: Any) -> None:
        # Like a busy API server: entries that arrive meanwhile are written together.
        time.sleep(0.2)
        sizes.append(len(json.dumps(value)))
        write(key, value, **options)

    monkeypatch.setattr(store, "set", write_slowly)
    if saved:
        assert execute(rows(200), concurrency=100)["saved"] == saved
    else:
        with pytest.raises(
            errors.BatchIncompleteError, match="5 consecutive requests ended without a response"
        ):
            execute(rows(200), concurrency=100)
    print(f"{len(sizes)} writes of {max(sizes)} bytes at most")
    assert max(sizes) < 64 * 1024


def check_complete(
    simulator: GetimgSimulator, seaweedfs: SeaweedFS, prefix: str, summary: dict[str, Any]
) -> None:
    """Check that every row is saved and was billed once, and that there are no other objects."""
    lines = manifest_of(seaweedfs, summary["manifest"])
    assert (summary["requested"], summary["saved"], summary["failed"]) == (len(lines), len(lines), 0)
    assert {line["outcome"] for line in lines} <= {"saved", "reused"}
    assert saved_objects(seaweedfs, prefix, but=summary["manifest"]) == {
        line["uri"]: line["sha256"] for line in lines
    }
    assert billed_prompts(simulator) == Counter(line["request"]["prompt"] for line in lines)


def test_batch_returns_a_summary_and_writes_a_manifest(simulator, seaweedfs, run, prefix, key):
    ended = run("batch", requests=rows(12, {3: {"output_format": "png", "labels": {"sku": "A-3"}}}), key=key)
    assert ended.state == "success", last_log(ended)
    summary = ended.xcom()
    run_id = ended.run_id.replace(":", "_").replace("+", "_")
    manifest = f"s3://{STACK_BUCKET}/{prefix}/manifests/batch/{run_id}/generate.jsonl"
    uris = [f"s3://{STACK_BUCKET}/{prefix}/{n:04}.{'png' if n == 3 else 'jpg'}" for n in range(12)]
    assert summary == {
        "requested": 12,
        "saved": 12,
        "reused": 0,
        "failed": 0,
        "not_sent": 0,
        "total_cost": pytest.approx(12 * PRICE),
        "manifest": manifest,
        "uris": uris,
        "aws_conn_id": "aws_default",
    }
    check_complete(simulator, seaweedfs, prefix, summary)
    lines = manifest_of(seaweedfs, manifest)
    ids = {post["prompt"]: post["id"] for post in simulator.ledger.raw()["posts"]}
    content = read_object(seaweedfs, uris[3])
    assert lines[3] == {
        "row": 3,
        "outcome": "saved",
        "request": {
            "model": MODEL,
            "prompt": "Picture 3 (3)",
            "output_format": "png",
            "labels": {"sku": "A-3"},
        },
        "generation_id": ids["Picture 3 (3)"],
        "cost": PRICE,
        "error": None,
        "uri": uris[3],
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "mime_type": "image/png",
    }
    log = last_log(ended)
    assert "12 of 12 rows are saved, 0 of them reused; 0.48 USD in total." in log
    assert "sig=" not in log
    assert simulator.api_key not in log
    assert "sig=" not in json.dumps(lines)


@pytest.mark.parametrize(("max_failures", "state"), [(0, "failed"), (1, "success"), ("10%", "success")])
def test_rejected_row_stops_no_other_row_and_fails_the_task_only_beyond_max_failures(
    simulator, seaweedfs, run, prefix, key, max_failures, state
):
    ended = run("batch", requests=rows(12, {5: {"prompt": "gore"}}), key=key, max_failures=max_failures)
    # The API would reject it again: Airflow does not retry, and the row is sent once.
    assert ended.state == state
    assert posts_by_status(simulator) == {200: 11, 422: 1}
    run_id = ended.run_id.replace(":", "_").replace("+", "_")
    manifest = f"s3://{STACK_BUCKET}/{prefix}/manifests/batch/{run_id}/generate.jsonl"
    lines = manifest_of(seaweedfs, manifest)
    assert [line["row"] for line in lines if line["outcome"] != "saved"] == [5]
    assert "422" in lines[5]["error"]
    assert "Nothing was billed." in lines[5]["error"]
    assert len(saved_objects(seaweedfs, prefix, but=manifest)) == 11
    if state == "failed":
        log = last_log(ended)
        assert "11 of 12 rows are saved, 11 were billed (0.44 USD in total), 1 failed. Row 5: " in log
        assert f"All rows are in {manifest}." in log
        assert "pays again" not in log
        summary = ended.xcom()
        assert (summary["saved"], summary["failed"], summary["manifest"]) == (11, 1, manifest)
        assert summary["total_cost"] == pytest.approx(0.44)
    else:
        assert (ended.xcom()["saved"], ended.xcom()["failed"]) == (11, 1)


def test_exhausted_balance_stops_the_batch_and_a_clear_pays_only_for_missing_rows(
    simulator, seaweedfs, run, prefix, key
):
    simulator.settings(latency=0.1)
    simulator.balance = "0.40"
    ended = run("batch", requests=rows(40), key=key, concurrency=4)
    assert ended.state == "failed"
    assert simulator.ledger.total_cost == pytest.approx(0.40)
    # It stops at once: no slot sends another request after a 402.
    assert 1 <= posts_by_status(simulator)[402] <= 4
    log = last_log(ended)
    assert "10 of 40 rows are saved, 10 were billed (0.40 USD in total), " in log
    assert "The batch was stopped: " in log
    assert len(saved_objects(seaweedfs, prefix)) == 11
    simulator.balance = "100"
    ended.clear("generate")
    assert ended.state == "success", last_log(ended)
    summary = ended.xcom()
    assert summary["reused"] == 10
    assert summary["total_cost"] == pytest.approx(30 * PRICE)
    check_complete(simulator, seaweedfs, prefix, summary)


@contextmanager
def refusing_connection(
    airflow_stack: Airflow, seaweedfs: SeaweedFS, connection_id: str
) -> Iterator[S3FaultProxy]:
    """Yield an S3 proxy that injects faults, with an AWS connection that leads through it."""
    with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
        connection = json.loads(proxy.aws_connection(seaweedfs.aws_connection()))
        connection["extra"]["config_kwargs"]["retries"] = {"total_max_attempts": 1}
        body = connection | {"connection_id": connection_id, "extra": json.dumps(connection["extra"])}
        airflow_stack.request("POST", "/connections", body=body)
        yield proxy


@pytest.fixture(scope="module")
def refusing(airflow_stack: Airflow, seaweedfs: SeaweedFS) -> Iterator[S3FaultProxy]:
    with refusing_connection(airflow_stack, seaweedfs, "aws_refusing") as proxy:
        yield proxy


def denied(key_contains: str, skip: int = 0) -> dict[str, Any]:
    """Return a fault that denies writes to keys that contain a text."""
    where = {"operation": "PutObject", "key_contains": key_contains, "skip": skip}
    return {"kind": "status", "code": "AccessDenied", "times": 9999, **where}


def test_batch_that_cannot_write_to_s3_sends_nothing_and_reports_zero_cost(
    simulator, refusing, run, prefix, key, tmp_path
):
    refusing.set_faults([denied(prefix)])
    witness = tmp_path / "bill.json"
    ended = run("batch_reported", requests=rows(12), key=key, aws_conn="aws_refusing", witness=str(witness))
    assert (ended.tasks("generate")[0]["state"], ended.tries()) == ("failed", 1)
    assert simulator.ledger.raw() == {"posts": [], "billed_total": 0}
    log = last_log(ended)
    assert (
        "0 of 12 rows are saved, 0 were billed (0 USD in total), 12 were not sent. The batch was stopped: S3 refused to store"
        in log
    )
    reported = ended.xcom("report")
    assert (reported["requested"], reported["saved"], reported["total_cost"]) == (12, 0, 0)
    assert reported["manifest"] is None
    assert json.loads(witness.read_text()) == {"billed": "no", "cost": "0", "generation_ids": []}


def test_paid_images_that_s3_rejected_midway_are_saved_after_a_clear_without_paying_again(
    simulator, seaweedfs, refusing, run, prefix, tmp_path
):
    # Much longer than S3 takes: the first denial comes before the last request.
    simulator.settings(latency=0.5)
    refusing.set_faults([denied(".jpg", skip=4)])
    witness = tmp_path / "bill.json"
    ended = run(
        "batch_reported",
        requests=rows(40),
        # This key is not known beforehand, so a Clear regenerates what was delivered.
        key=f"{prefix}/{{row:04}}-{{generation_id}}.{{extension}}",
        aws_conn="aws_refusing",
        concurrency=4,
        witness=str(witness),
    )
    assert (ended.tasks("generate")[0]["state"], ended.tries()) == ("failed", 1)
    posts = [post for post in simulator.ledger.raw()["posts"] if post["billed"]]
    # It stopped at the first denial; how many responses arrived before that depends on the machine.
    assert 4 < len(posts) < 40
    assert (
        f"4 of 40 rows are saved, {len(posts)} were billed ({PRICE * len(posts):.2f} USD in total), "
        in last_log(ended)
    )
    # Downstream tasks and callbacks get the report.
    reported = ended.xcom("report")
    assert (reported["requested"], reported["saved"]) == (40, 4)
    assert (reported["failed"], reported["not_sent"]) == (len(posts) - 4, 40 - len(posts))
    assert "neither a retry nor a Clear pays again for images that were billed and are not saved" in last_log(
        ended
    )
    assert reported["total_cost"] == pytest.approx(PRICE * len(posts))
    lines = manifest_of(seaweedfs, reported["manifest"])
    bill = json.loads(witness.read_text())
    assert (bill["billed"], float(bill["cost"])) == ("yes", pytest.approx(PRICE * len(posts)))
    assert sorted(bill["generation_ids"]) == sorted(post["id"] for post in posts)
    delivered = {line["request"]["prompt"] for line in lines if line["outcome"] == "saved"}
    assert len(delivered) == 4

    # Cleared before the bucket is fixed: nothing is billed.
    refusing.set_faults([denied(prefix)])
    ended.clear("generate")
    assert ended.tasks("generate")[0]["state"] == "failed"
    assert len(simulator.ledger) == len(posts)

    refusing.clear()
    ended.clear("generate", "report")
    assert ended.tasks("generate")[0]["state"] == "success", last_log(ended)
    assert billed_prompts(simulator) == {
        request["prompt"]: 2 if request["prompt"] in delivered else 1 for request in rows(40)
    }
    summary = ended.xcom("report")
    assert (summary["saved"], summary["failed"]) == (40, 0)
    assert summary["total_cost"] == pytest.approx(40 * PRICE)


def test_clear_of_a_saved_batch_sends_no_request_and_keeps_its_images(simulator, seaweedfs, run, prefix, key):
    ended = run("batch", requests=rows(10), key=key)
    before = saved_objects(seaweedfs, prefix)
    ended.clear("generate")
    assert ended.state == "success"
    assert len(simulator.ledger) == 10
    summary = ended.xcom()
    assert (summary["reused"], summary["total_cost"]) == (10, 0)
    check_complete(simulator, seaweedfs, prefix, summary)
    images = [uri for uri in before if "/manifests/" not in uri]
    assert len(images) == 10
    after = saved_objects(seaweedfs, prefix)
    assert {uri: before[uri] for uri in images} == {uri: after[uri] for uri in images}


def test_batch_marked_as_failed_stops_sending_and_saves_the_images_in_flight(
    airflow_stack: Airflow, simulator: GetimgSimulator, seaweedfs: SeaweedFS, begin, prefix, key
):
    simulator.settings(latency=1)
    requests = rows(100)
    run_id = begin("batch", requests=requests, key=key, concurrency=4)

    def pid() -> int | None:
        [task] = airflow_stack.task_instances("batch", run_id)
        return task["pid"] if posts_by_status(simulator)[200] >= 8 else None

    running = airflow_stack.poll(pid, 90)
    assert running
    worker = psutil.Process(running)
    airflow_stack.request(
        "PATCH", f"/dags/batch/dagRuns/{run_id}/taskInstances/generate", body={"new_state": "failed"}
    )
    # The supervisor gets the new state with its next heartbeat.
    worker.wait(60)
    posts = simulator.ledger.raw()["posts"]
    assert len(posts) < len(requests)
    # The latency is shorter than the time for which a killed task waits for responses.
    assert Counter(post["outcome"] for post in posts) == {"delivered": len(posts)}
    saved = saved_objects(seaweedfs, prefix)
    arrived = [int(post["prompt"].split()[1]) for post in posts]
    assert {f"s3://{STACK_BUCKET}/{prefix}/{row:04}.jpg" for row in arrived} <= set(saved)
    log = airflow_stack.task_log("batch", run_id, "generate")
    assert "sig=" not in log
    assert simulator.api_key not in log

    simulator.settings(latency=0)
    airflow_stack.clear("batch", run_id, ["generate"])
    assert airflow_stack.wait("batch", run_id, timeout=180) == "success"
    summary = airflow_stack.xcom("batch", run_id, "generate")
    assert summary["reused"] == len(posts)
    check_complete(simulator, seaweedfs, prefix, summary)


def test_batch_that_times_out_is_continued_by_the_next_try_without_paying_again(
    simulator, seaweedfs, run, prefix, key
):
    simulator.settings(latency=1)
    ended = run("batch_timed_out", requests=rows(20), key=key, concurrency=2, timeout=240)
    assert ended.state == "success", last_log(ended)
    assert ended.tries() >= 2
    summary = ended.xcom()
    # The requests in flight were completed and their images saved: no outcome is unknown.
    check_complete(simulator, seaweedfs, prefix, summary)
    assert summary["reused"] >= 2
    assert summary["total_cost"] == pytest.approx(20 * PRICE)
    assert len(simulator.ledger) == 20
    assert "no more requests are sent; images that have arrived are saved." in ended.log(try_number=1)


def test_mapped_batches_in_a_one_slot_pool_run_one_at_a_time_with_separate_manifests(
    airflow_stack: Airflow, simulator, seaweedfs, run, prefix
):
    airflow_stack.create_pool("one_batch", 1)
    simulator.settings(latency=0.2)
    requests = rows(12)
    chunks = [requests[start : start + 4] for start in (0, 4, 8)]
    # Not by row: each batch numbers its own rows.
    ended = run("batch_mapped", requests=chunks, key=f"{prefix}/{{generation_id}}.{{extension}}")
    assert ended.state == "success", ended.log(map_index=0)
    tasks = ended.tasks("generate")
    times = sorted((task["start_date"], task["end_date"]) for task in tasks)
    assert len(times) == 3
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
    summaries = [ended.xcom(map_index=index) for index in range(3)]
    assert [summary["saved"] for summary in summaries] == [4, 4, 4]
    assert len({summary["manifest"] for summary in summaries}) == 3
    lines = [line for summary in summaries for line in manifest_of(seaweedfs, summary["manifest"])]
    assert [line["request"]["prompt"] for line in lines] == [request["prompt"] for request in requests]
    objects = saved_objects(seaweedfs, prefix)
    assert {uri: sha for uri, sha in objects.items() if "/manifests/" not in uri} == {
        line["uri"]: line["sha256"] for line in lines
    }
    assert billed_prompts(simulator) == Counter(request["prompt"] for request in requests)


def test_rows_from_an_upstream_task_become_asset_events_and_no_signature_is_exposed(
    airflow_stack: Airflow, simulator, seaweedfs, run, prefix, key
):
    # A reference image with a signed URL; the simulator doesn't fetch it.
    signed = "https://127.0.0.1:1/reference.png?exp=1&sig=badc0ffeebadc0ff"
    ended = run("batch_upstream", requests=rows(6, {2: {"images": [signed]}}), key=key)
    assert ended.state == "success", last_log(ended)
    summary = ended.xcom()
    check_complete(simulator, seaweedfs, prefix, summary)
    path = f"/dags/batch_upstream/dagRuns/{ended.run_id}/upstreamAssetEvents"
    assert "asset_events" in airflow_stack.request("GET", path)
    events = airflow_stack.request(
        "GET", "/assets/events", params={"source_dag_id": "batch_upstream", "limit": 100}
    )["asset_events"]
    ours = {event["uri"]: event["extra"] for event in events if event["source_run_id"] == ended.run_id}
    lines = manifest_of(seaweedfs, summary["manifest"])
    assert {uri: extra["sha256"] for uri, extra in ours.items()} == {
        line["uri"]: line["sha256"] for line in lines
    }
    assert ours[lines[2]["uri"]]["generation_id"] == lines[2]["generation_id"]
    fields = airflow_stack.rendered_fields("batch_upstream", ended.run_id, "generate")
    assert "reference.png" in json.dumps(fields)
    for text in (
        json.dumps(fields),
        json.dumps(summary),
        json.dumps(lines),
        json.dumps(events),
        last_log(ended),
    ):
        assert "sig=" not in text
        assert "badc0ffee" not in text
        assert simulator.api_key not in text


def test_rows_can_come_from_a_mapped_task(simulator, seaweedfs, run, prefix, key):
    ended = run("batch_upstream_mapped", requests=rows(3), key=key)
    assert ended.state == "success", last_log(ended)
    check_complete(simulator, seaweedfs, prefix, ended.xcom())


def test_rows_can_come_from_a_file_in_s3(simulator, seaweedfs, run, prefix, key):
    name = f"{prefix.replace('batch/', 'requests/')}.jsonl"
    content = "\n".join(map(json.dumps, rows(6))) + "\n\n"
    seaweedfs.client().put_object(Bucket=STACK_BUCKET, Key=name, Body=content.encode())
    ended = run("batch", requests=f"s3://{STACK_BUCKET}/{name}", key=key)
    assert ended.state == "success", last_log(ended)
    check_complete(simulator, seaweedfs, prefix, ended.xcom())


@pytest.mark.long
def test_1000_rows_need_fewer_than_1000_state_store_writes_each_below_64_kib(
    simulator, seaweedfs, run, prefix, key, tmp_path
):
    ended = run("batch", requests=rows(1000), key=key, concurrency=64, witness=str(tmp_path), timeout=600)
    assert ended.state == "success", last_log(ended)
    check_complete(simulator, seaweedfs, prefix, ended.xcom())
    counts = json.loads((tmp_path / "writes.json").read_text())
    assert max(counts["most_bytes"].values()) < 64 * 1024
    # Each row has three entries (intent, response, saved files), and many entries share a write.
    assert sum(counts["writes"].values()) < 1000
