# SPDX-License-Identifier: Apache-2.0
"""The balance sensor in a real Airflow: rescheduled by the scheduler, and deferred to the triggerer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_getimg.version_compat import AIRFLOW_VERSION

if TYPE_CHECKING:
    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow

WAITS = pytest.mark.parametrize(
    ("dag_id", "waiting"),
    [("balance_reschedule", "up_for_reschedule"), ("balance_deferrable", "deferred")],
    ids=["reschedule", "deferrable"],
)


def start(airflow: Airflow, dag_id: str, **conf: Any) -> str:
    airflow.wait_for_dag(dag_id)
    airflow.unpause(dag_id)
    return airflow.trigger(dag_id, conf=conf)


def wait_for_state(airflow: Airflow, dag_id: str, run_id: str, state: str) -> None:
    def reached() -> bool:
        return airflow.waiting_state(dag_id, run_id, "wait") == state

    assert airflow.poll(reached, 60), airflow.task_instances(dag_id, run_id)


@WAITS
def test_sensor_waits_until_the_balance_reaches_the_minimum(
    airflow_stack: Airflow, simulator: GetimgSimulator, dag_id: str, waiting: str
):
    simulator.balance = "4.99"
    run_id = start(airflow_stack, dag_id)
    wait_for_state(airflow_stack, dag_id, run_id, waiting)
    simulator.balance = "7.50"
    assert airflow_stack.wait(dag_id, run_id) == "success"
    assert airflow_stack.xcom(dag_id, run_id, "wait") == 7.5
    log = airflow_stack.task_log(dag_id, run_id, "wait", -1, 1)
    # The triggerer's messages are in the task's log, too.
    assert "Balance: 4.99 USD, minimum: 5 USD." in log
    assert "Balance: 7.50 USD, minimum: 5 USD." in log
    assert simulator.api_key not in log
    assert not simulator.ledger


@WAITS
def test_api_key_rejected_while_the_sensor_waits_fails_it_without_a_retry(
    airflow_stack: Airflow, simulator: GetimgSimulator, dag_id: str, waiting: str
):
    simulator.balance = 0
    conn_id = f"getimg_{dag_id}"
    connection = {
        "connection_id": conn_id,
        "conn_type": "getimg",
        "host": simulator.url,
        "password": simulator.api_key,
    }
    airflow_stack.request("POST", "/connections", body=connection)
    run_id = start(airflow_stack, dag_id, conn_id=conn_id)
    wait_for_state(airflow_stack, dag_id, run_id, waiting)
    airflow_stack.request("PATCH", f"/connections/{conn_id}", body=connection | {"password": "sk_wrong"})
    assert airflow_stack.wait(dag_id, run_id) == "failed"
    [task] = airflow_stack.task_instances(dag_id, run_id)
    log = airflow_stack.task_log(dag_id, run_id, "wait", -1, 1)
    assert task["try_number"] == 1, log
    assert "AuthenticationError" in log
    assert "401 invalid_api_key" in log
    assert "sk_wrong" not in log


def test_sensor_timeout_fails_the_task_or_skips_it_under_soft_fail(
    airflow_stack: Airflow, simulator: GetimgSimulator
):
    simulator.balance = 0
    run_id = start(airflow_stack, "balance_timeout")
    assert airflow_stack.wait("balance_timeout", run_id) == "failed"
    tasks = {task["task_id"]: task for task in airflow_stack.task_instances("balance_timeout", run_id)}
    assert {name: task["state"] for name, task in tasks.items()} == {
        "reschedule": "failed",
        "reschedule_soft_fail": "skipped",
        "deferrable": "failed",
        # A bug of Airflow 3.1.2, fixed by 3.1.8.
        "deferrable_soft_fail": "failed" if AIRFLOW_VERSION == "3.1.2" else "skipped",
    }
    # Not the deferred ones: the scheduler and the triggerer both end their wait, and Airflow sometimes counts a second try.
    assert tasks["reschedule"]["try_number"] == tasks["reschedule_soft_fail"]["try_number"] == 1


def test_example_dag_succeeds_when_the_balance_covers_the_cost_of_all_images(
    airflow_stack: Airflow, simulator: GetimgSimulator
):
    simulator.balance = "20.00"
    run_id = start(airflow_stack, "getimg_check_balance", images=500)
    assert airflow_stack.wait("getimg_check_balance", run_id) == "success"
    assert airflow_stack.xcom("getimg_check_balance", run_id, "cost_of_the_night") == 20.0
    assert airflow_stack.xcom("getimg_check_balance", run_id, "wait_for_balance") == 20.0
    assert not simulator.ledger
