# SPDX-License-Identifier: Apache-2.0
"""SIGTERM for a task whose supervisor, which reads its log, has died: the state folder still records what is in flight."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_getimg.testing import GetimgSimulator

LATENCY = 1.0
# The task's process as Airflow's supervisor starts it: its log goes to a socket.
TASK = """
import os, signal, sys
from datetime import UTC, datetime
from types import SimpleNamespace
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow.sdk.log import configure_logging, reset_logging
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator

kind, bucket, log = sys.argv[1], sys.argv[2], int(sys.argv[3])
reset_logging()
configure_logging(json_output=True, output=os.fdopen(log, "wb", buffering=0), sending_to_supervisor=True)
if kind == "image":
    task = GenerateImageOperator(task_id="t", model="sketch-mini", prompt="A fox 0")
else:
    task = GenerateImagesToS3Operator(
        task_id="t",
        requests=[{"prompt": f"A fox {number}"} for number in range(3)],
        defaults={"model": "sketch-mini"},
        s3_key=f"s3://{bucket}/{{row}}.{{extension}}",
    )
started = datetime(2026, 11, 29, 16, tzinfo=UTC)
ti = SimpleNamespace(
    try_number=1, max_tries=3, dag_id="d", run_id="r", task_id="t", map_index=-1, xcom_push=lambda key, value: None
)
run = SimpleNamespace(start_date=started, run_after=started, clear_number=0)
signal.signal(signal.SIGTERM, lambda *_: task.on_kill())
task.execute({"ti": ti, "outlet_events": OutletEventAccessors(), "dag_run": run})
"""


def wait_for_requests(simulator: GetimgSimulator, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(simulator.ledger) < count:
        assert time.monotonic() < deadline, f"only {len(simulator.ledger)} requests arrived"
        time.sleep(0.02)


@pytest.mark.parametrize(("kind", "requests"), [("image", 1), ("batch", 3)])
def test_response_in_flight_is_recorded(simulator, seaweedfs, bucket, kind, requests):
    simulator.settings(latency=LATENCY)
    supervisor, task = socket.socketpair()
    env = {
        **os.environ,
        "AIRFLOW_CONN_GETIMG_DEFAULT": simulator.process.connection(state_folder=f"s3://{bucket}/state"),
        "AIRFLOW_CONN_AWS_DEFAULT": seaweedfs.aws_connection(),
    }
    with supervisor:
        with task:
            process = subprocess.Popen(
                [sys.executable, "-c", TASK, kind, bucket, str(task.fileno())],
                pass_fds=[task.fileno()],
                env=env,
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            wait_for_requests(simulator, requests)
        except BaseException:
            process.kill()
            raise
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert {entry.outcome for entry in simulator.ledger} == {"delivered"}, stderr
    client = seaweedfs.client()
    listed = client.list_objects_v2(Bucket=bucket)["Contents"]
    states = [
        client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read().decode()
        for entry in listed
        if entry["Key"].startswith("state/")
    ]
    # What the next try reads.
    assert all(any(entry.id in state for state in states) for entry in simulator.ledger), states
