# SPDX-License-Identifier: Apache-2.0
"""
A deploy while a task is running: SIGTERM, then time to finish.

A Kubernetes pod sends the signal to the supervisor, which forwards it to the task's process and kills nothing by itself.
"""

from __future__ import annotations

import random
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.integration.test_batch import check_complete, rows

if TYPE_CHECKING:
    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow, SeaweedFS

CAMPAIGN = 20


def running_task(airflow: Airflow, dag_id: str, run_id: str) -> psutil.Process | None:
    """Return the process of the run's task "generate", or None while it has none."""
    for task in airflow.task_instances(dag_id, run_id):
        if task["task_id"] == "generate" and task["state"] == "running" and task["pid"]:
            with suppress(psutil.NoSuchProcess):
                return psutil.Process(task["pid"])
    return None


def outcomes(simulator: GetimgSimulator) -> set[str]:
    """Return the outcomes of all responses."""
    return {post["outcome"] for post in simulator.ledger.raw()["posts"]}


def test_image_in_flight_at_sigterm_is_delivered_without_a_second_request(
    airflow_stack: Airflow, simulator: GetimgSimulator, begin
):
    simulator.settings(latency=8)
    run_id = begin("paying_once")
    assert airflow_stack.poll(lambda: len(simulator.ledger), 60)
    process = running_task(airflow_stack, "paying_once", run_id)
    assert process is not None
    process.parent().send_signal(signal.SIGTERM)
    assert airflow_stack.wait("paying_once", run_id) == "success"
    assert len(simulator.ledger) == 1
    assert outcomes(simulator) == {"delivered"}
    log = airflow_stack.task_log("paying_once", run_id, "generate")
    assert "The task was terminated with a request in flight, which may be billed." in log


def test_batch_stops_sending_at_sigterm_and_saves_the_images_in_flight(
    airflow_stack: Airflow, simulator: GetimgSimulator, seaweedfs: SeaweedFS, begin, prefix, key
):
    simulator.settings(latency=8)
    run_id = begin("batch", requests=rows(12), key=key, concurrency=4)
    assert airflow_stack.poll(lambda: len(simulator.ledger) >= 4, 60)
    process = running_task(airflow_stack, "batch", run_id)
    assert process is not None
    process.parent().send_signal(signal.SIGTERM)
    process.wait(60)
    simulator.settings(latency=0)
    assert airflow_stack.wait("batch", run_id) == "success"
    summary = airflow_stack.xcom("batch", run_id, "generate")
    check_complete(simulator, seaweedfs, prefix, summary)
    assert outcomes(simulator) == {"delivered"}
    # More than the first four only if their responses had come before the signal.
    assert summary["reused"] in (4, 8)
    log = airflow_stack.task_log("batch", run_id, "generate")
    assert (
        "requests are in flight; waiting up to 120 seconds for them, unless Airflow ends the task sooner."
        in log
    )


@pytest.mark.long
def test_batch_terminated_20_times_saves_every_row_and_pays_once_for_each(
    airflow_stack: Airflow, simulator: GetimgSimulator, seaweedfs: SeaweedFS, begin, prefix, key
):
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    moments = random.Random(seed)
    simulator.settings(latency=1, max_latency=4)
    run_id = begin("batch_deployed", requests=rows(100), key=key, concurrency=2)
    seen: set[int] = set()
    for number in range(CAMPAIGN):
        sent = len(simulator.ledger) + 1 + moments.randrange(4)

        def task(sent: int = sent) -> psutil.Process | None:
            process = running_task(airflow_stack, "batch_deployed", run_id)
            if process is None or process.pid in seen or len(simulator.ledger) < sent:
                return None
            return process

        process = airflow_stack.poll(task, 120)
        assert process is not None, f"seed {seed}: try {number + 1} did not begin"
        seen.add(process.pid)
        with suppress(psutil.NoSuchProcess):
            # To the task itself, not to the supervisor as above: Airflow 3.3's supervisor logs in its signal handler, and hangs
            # forever if it is logging at that moment.
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    simulator.settings(latency=0)
    assert airflow_stack.wait("batch_deployed", run_id, timeout=300) == "success", f"seed {seed}"
    assert outcomes(simulator) == {"delivered"}, f"seed {seed}"
    assert len(simulator.ledger) == 100
    check_complete(simulator, seaweedfs, prefix, airflow_stack.xcom("batch_deployed", run_id, "generate"))
