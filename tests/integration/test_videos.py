# SPDX-License-Identifier: Apache-2.0
"""Videos in a real Airflow: in its triggerer, and with task processes and triggerers that are killed."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from devstack import Airflow
from devstack.process import GuardedProcess
from tests.conftest import REPOSITORY, STACK_BUCKET

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS

PRICE = 0.2
# Places where the first try is killed. In the second group, its request may be sent, but no id is recorded yet.
KNOWN = [
    "video.py:execute:",
    "paid_video.py:find:",
    "ledger.py:previous:",
    "request_spec.py:resolve:",
    "ledger.py:record_intent:",
    "video.py:_wait:",
]
LOST = [
    "client.py:create_video:",
    "paid_request.py:sending:#6",
    "client.py:_send:",
    "connection_watch.py:__exit__:",
    "client.py:_paid:#7",
    "reading.py:read:",
    "types.py:from_json:",
    "ledger.py:record_video:",
    "ledger.py:_keep:",
]
POLLED = [
    "client.py:get_video:",
    "paid_video.py:poll:",
    "ledger.py:record_response:",
    "paid_request.py:_log_made:",
    "one_generation.py:_push:",
    "task_runner.py:_xcom_push:",
    "ledger.py:delivered:",
]


@pytest.mark.parametrize(
    ("dag_id", "last"),
    [
        ("video_killed_in_worker", "ledger.py:delivered:#4"),
        # A task gets here only when it is resumed.
        ("video_killed_in_triggerer", "video.py:execute_complete:"),
    ],
)
@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.long)], ids=["few", "all"])
def test_killed_task_gets_its_video_or_fails_and_is_billed_once_at_most(
    simulator: GetimgSimulator, run, tmp_path: Path, dag_id: str, last: str, few: bool
):
    simulator.settings(video_latency=1)
    moments = [KNOWN[4], LOST[7], POLLED[2]] if few else [*KNOWN, *LOST, *POLLED, last]
    ended = run(dag_id, moments=moments, witnesses=str(tmp_path), timeout=60 + 20 * len(moments))
    posts = simulator.ledger.raw()["posts"]
    billed = Counter(post["prompt"] for post in posts if post["billed"])
    seen = Counter()
    for index, (moment, task) in enumerate(zip(moments, ended.tasks("generate"), strict=True)):
        prompt = f"{moment} ({index})"
        where = (moment, task["state"], task["try_number"], billed[prompt])
        assert (tmp_path / str(index)).exists(), where
        assert (task["try_number"], billed[prompt]) == (2, 1) or moment in LOST, where
        assert billed[prompt] <= 1, where
        if task["state"] == "success":
            ids = [post["id"] for post in posts if post["prompt"] == prompt]
            assert [ended.xcom("generate", map_index=index)["id"]] == ids, where
        else:
            log = ended.log("generate", try_number=2, map_index=index)
            assert moment in LOST, (where, log)
            assert "It may have been billed." in log, where
        seen[task["state"]] += 1
    assert seen["failed"] <= len(set(LOST) & set(moments))
    assert simulator.ledger.total_cost == pytest.approx(PRICE * sum(billed.values()))


def test_deferred_videos_hold_no_pool_slot_and_are_saved(
    airflow_stack: Airflow, simulator: GetimgSimulator, seaweedfs: SeaweedFS, begin
):
    # Longer than four slots take to submit six.
    simulator.settings(video_latency=16)
    run_id = begin("videos", count=6)

    def are_deferred() -> bool:
        tasks = airflow_stack.task_instances("videos", run_id)
        return sum(task["state"] == "deferred" for task in tasks) == 6

    assert airflow_stack.poll(are_deferred, 120)
    pool = airflow_stack.request("GET", "/pools/getimg")
    assert (pool["running_slots"], pool["deferred_slots"], pool["occupied_slots"]) == (0, 6, 0)
    assert airflow_stack.wait("videos", run_id, timeout=120) == "success"
    assert [entry.billed for entry in simulator.ledger] == [PRICE] * 6
    listed = seaweedfs.client().list_objects_v2(Bucket=STACK_BUCKET, Prefix=f"videos/{run_id}/")["Contents"]
    assert {entry["Key"].rpartition("/")[2] for entry in listed} == {
        f"{entry.id}.mp4" for entry in simulator.ledger
    }
    log = airflow_stack.task_log("videos", run_id, "generate", 0, 1)
    # The task's log includes the triggerer's lines.
    assert "is pending after 0:00:0" in log
    assert "sig=" not in log
    assert simulator.api_key not in log


def triggerer(airflow: Airflow) -> psutil.Process:
    """Return an Airflow's triggerer: the first process of that name, as the others are its children."""
    for process in psutil.Process(airflow.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "triggerer" in " ".join(process.cmdline()):
                return process
    raise AssertionError("no triggerer is running")


@pytest.mark.long
def test_videos_of_a_killed_triggerer_are_taken_over_by_another(
    simulator: GetimgSimulator, seaweedfs: SeaweedFS, tmp_path: Path, state_extra: dict[str, str]
):
    simulator.settings(video_latency=45)
    bucket = seaweedfs.create_bucket("getimg-triggerers")
    env = {
        "AIRFLOW_CONN_AWS_DEFAULT": seaweedfs.aws_connection(),
        "AIRFLOW_CONN_GETIMG_DEFAULT": simulator.process.connection(**state_extra),
        "AIRFLOW_VAR_GETIMG_BUCKET": bucket,
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    }
    with Airflow(tmp_path / "airflow", [REPOSITORY / "tests" / "integration" / "dags"], env=env) as airflow:
        airflow.create_pool("getimg", 16)
        airflow.wait_for_dag("videos")
        airflow.unpause("videos")
        run_id = airflow.trigger("videos", conf={"count": 10})

        def are_deferred() -> bool:
            tasks = airflow.task_instances("videos", run_id)
            return sum(task["state"] == "deferred" for task in tasks) == 10

        assert airflow.poll(are_deferred, 120)
        first = triggerer(airflow)
        second = GuardedProcess(
            "triggerer",
            ["airflow", "triggerer", "--skip-serve-logs"],
            log=tmp_path / "triggerer.log",
            env=airflow.env,
            cwd=airflow.home,
            grace=3.0,
        )
        try:
            for process in (*first.children(recursive=True), first):
                process.send_signal(signal.SIGKILL)
            assert airflow.wait("videos", run_id, timeout=300) == "success"
        finally:
            second.end()
        assert [entry.billed for entry in simulator.ledger] == [PRICE] * 10
        tries = {task["try_number"] for task in airflow.task_instances("videos", run_id)}
        assert tries == {1}
