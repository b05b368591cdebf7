# SPDX-License-Identifier: Apache-2.0
"""
Transfers killed with SIGKILL: Airflow retries them, and then every file is saved once, with identical content.

A moment is a line of code: of the transfer, in any of its threads, or of Airflow's task runner after it (the push of
the XCom). The process of the first try is killed right before executing it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.requests import ImageRequest
from tests.conftest import STACK_BUCKET
from tests.support.s3_faults import S3FaultProxy

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow, SeaweedFS

MIB = 1024 * 1024
# The size of each file of a task in bytes, or 0 for an image as generated: three are kept in memory, one on disk.
SIZES = (0, 0, 0, 12 * MIB)


def generate(simulator: GetimgSimulator, path: Path, sizes: tuple[int, ...] = SIZES) -> list[dict[str, Any]]:
    """Pay for a file of each size, and write the responses to the file that the DAG reads."""
    responses = []
    with GetimgClient(simulator.api_key, base_url=simulator.url) as client:
        for number, size in enumerate(sizes):
            simulator.settings(file_size=size)
            request = ImageRequest.checked(model="seedream-5-lite", prompt=f"Picture {number}")
            responses.append(client.generate_image(request).to_json())
    path.write_text(json.dumps(responses))
    return responses


def check_saved(
    seaweedfs: SeaweedFS, prefix: str, responses: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> None:
    """Check that the objects below the prefix are these files, unchanged, and that each has its row."""
    client = seaweedfs.client()
    wanted = {
        f"{prefix}/{response['id']}-0.jpg": httpx.get(response["data"][0]["url"], trust_env=False).content
        for response in responses
    }
    listed = client.list_objects_v2(Bucket=STACK_BUCKET, Prefix=f"{prefix}/").get("Contents", [])
    assert [entry["Key"] for entry in listed] == sorted(wanted)
    assert [row["key"] for row in rows] == list(wanted)
    for row, (key, content) in zip(rows, wanted.items(), strict=True):
        head = client.get_object(Bucket=STACK_BUCKET, Key=key)
        assert head["Body"].read() == content, key
        assert (row["uri"], row["etag"]) == (f"s3://{STACK_BUCKET}/{key}", head["ETag"].strip('"'))
        assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def turning_points(places: list[str]) -> list[str]:
    """Return the first line of each step that changes what is recorded or what is stored in S3."""

    def first(*starts: str) -> str:
        place = next((place for place in places if place.startswith(starts)), None)
        assert place, f"nothing executes {starts}"
        return place

    def last(start: str) -> str:
        return first(*[place for place in reversed(places) if place.startswith(start)][:1])

    return [
        first("download.py:_request:"),  # looked up, nothing downloaded
        first("spool.py:seal:"),  # downloaded, not verified
        first("store.py:_put:"),  # verified, not written
        last("copier.py:_write:"),  # one is written, nothing reported
        first("lineage.py:"),  # all saved, nothing reported
        first(
            "task_runner.py:_xcom_push:", "task_runner.py:_push_xcom_if_needed:"
        ),  # everything reported except the XCom
    ]


def spread(lines: int, moments: int) -> list[int]:
    """Return ``moments`` line numbers, spread evenly from the first line to the last."""
    return [1 + (lines - 2) * number // (moments - 1) for number in range(moments)]


@pytest.mark.parametrize("spread_moments", [0, pytest.param(28, marks=pytest.mark.long)])
def test_retry_of_a_killed_transfer_saves_every_file_and_nothing_else(
    simulator, seaweedfs, run, tmp_path, spread_moments
):
    whole = tmp_path / "whole"
    whole.mkdir()
    responses = generate(simulator, whole / "responses-0.json")
    ended = run("transfer_killed", moments=[0], folder=str(whole), prefix=f"{tmp_path.name}/whole")
    assert (ended.state, ended.tries("copy")) == ("success", 1), ended.log("moments")
    check_saved(seaweedfs, f"{tmp_path.name}/whole/0", responses, ended.xcom("copy", map_index=0))
    places = (whole / "0").read_text().splitlines()

    moments = [*turning_points(places), *(spread(len(places), spread_moments) if spread_moments else [])]
    responses_of = [
        generate(simulator, tmp_path / f"responses-{index}.json") for index, _ in enumerate(moments)
    ]
    ended = run(
        "transfer_killed",
        moments=moments,
        folder=str(tmp_path),
        prefix=tmp_path.name,
        timeout=60 + 15 * len(moments),
    )
    assert ended.state == "success"
    tasks = ended.tasks("copy")
    assert len(tasks) == len(moments)
    killed = 0
    for index, task in enumerate(tasks):
        died_at = (tmp_path / str(index)).read_text().splitlines()
        if task["try_number"] == 1:
            # Threads change the order and number of lines: this try ended before its moment.
            assert died_at == [] or "task_runner.py:" in died_at[0], (moments[index], died_at)
        else:
            assert (task["try_number"], len(died_at)) == (2, 1), (moments[index], died_at)
            killed += 1
        check_saved(
            seaweedfs, f"{tmp_path.name}/{index}", responses_of[index], ended.xcom("copy", map_index=index)
        )
    # Only the last of the turning points and of the spread lines may come after a try's end.
    assert killed >= len(moments) - 3


def test_transfer_killed_during_an_upload_leaves_no_partial_object(
    airflow_stack: Airflow, simulator: GetimgSimulator, seaweedfs: SeaweedFS, tmp_path
):
    responses = generate(simulator, tmp_path / "responses.json")
    with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
        aws = json.loads(proxy.aws_connection(seaweedfs.aws_connection()))
        connection = {"connection_id": f"aws_{tmp_path.name}", "conn_type": "aws"}
        airflow_stack.request(
            "POST",
            "/connections",
            body=connection
            | {"login": aws["login"], "password": aws["password"], "extra": json.dumps(aws["extra"])},
        )
        large = f"{tmp_path.name}/{responses[-1]['id']}-0.jpg"
        proxy.set_faults([{"kind": "slow", "operation": "PutObject", "key_contains": large, "seconds": 60}])
        airflow_stack.wait_for_dag("transfer_interrupted")
        airflow_stack.unpause("transfer_interrupted")
        run_id = airflow_stack.trigger(
            "transfer_interrupted",
            conf={
                "responses": str(tmp_path / "responses.json"),
                "prefix": tmp_path.name,
                "aws": connection["connection_id"],
            },
        )

        def sending() -> int | None:
            half_sent = any(request.fault == "slow" and request.body_bytes for request in proxy.requests)
            [task] = airflow_stack.task_instances("transfer_interrupted", run_id)
            return task["pid"] if half_sent else None

        pid = airflow_stack.poll(sending, 60)
        assert pid
        proxy.clear()
        os.kill(pid, signal.SIGKILL)
        assert airflow_stack.wait("transfer_interrupted", run_id, timeout=120) == "success"
        # The retry found nothing at the key: the interrupted request left neither an object nor a multipart upload.
        assert proxy.operations(large) == ["HeadObject", "PutObject"]
    [task] = airflow_stack.task_instances("transfer_interrupted", run_id)
    assert task["try_number"] == 2
    log = airflow_stack.task_log("transfer_interrupted", run_id, "copy", try_number=2)
    assert f"is already saved: s3://{STACK_BUCKET}/{large}" not in log
    check_saved(
        seaweedfs, tmp_path.name, responses, airflow_stack.xcom("transfer_interrupted", run_id, "copy")
    )


def test_retry_downloads_only_what_the_first_try_did_not_save(simulator, seaweedfs, run, tmp_path):
    def downloads() -> int:
        """Return how many downloads got the last fault, which only counts them."""
        due = httpx.get(f"{simulator.url}/_simulator/faults", trust_env=False).json()["faults"]
        return 1000 - due[-1]["times"]

    simulator.faults.add(
        # Longer than the connection's timeout, so that only Airflow's next try can download the file.
        {"on": "download", "kind": "status", "status": 503, "headers": {"Retry-After": "3000"}},
        {"on": "download", "kind": "slow_first_byte", "seconds": 0, "times": 1000},
    )
    ended = run("transfer_resumed", prefix=tmp_path.name)
    assert (ended.state, ended.tries("save")) == ("success", 2)
    assert "2 of 3 files are saved; the other 1, billed at 0.04 USD, are not." in ended.log(
        "save", try_number=1
    )
    assert downloads() == 3
    assert len(simulator.ledger) == 3
    second = ended.log("save", try_number=2)
    assert (second.count("is already saved"), second.count("Saved file")) == (2, 1)
    simulator.faults.clear()
    responses = [ended.xcom("generate", map_index=index) for index in range(3)]
    check_saved(seaweedfs, tmp_path.name, responses, ended.xcom("save"))
