# SPDX-License-Identifier: Apache-2.0
"""DAGs that the tests of the balance sensor run: the minimum and the connection are in the run's conf."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_provider_getimg.sensors.balance import GetimgBalanceSensor

START = datetime(2026, 1, 1)
MODES: dict[str, dict[str, Any]] = {
    # A task that comes back within one loop of the scheduler is taken for a lost one, and fails.
    "reschedule": {"mode": "reschedule", "poke_interval": 10},
    "deferrable": {"deferrable": True, "poke_interval": 1},
}
ARGUMENTS = {
    "minimum": "{{ params.minimum }}",
    "getimg_conn_id": "{{ params.conn_id }}",
    # A task that should fail at once would show as several tries.
    "retries": 2,
    "retry_delay": timedelta(seconds=1),
}
PARAMS = {"minimum": "5", "conn_id": "getimg_default"}

for name, mode in MODES.items():
    with DAG(dag_id=f"balance_{name}", schedule=None, start_date=START, params=PARAMS):
        GetimgBalanceSensor(task_id="wait", **ARGUMENTS, **mode)

with DAG(dag_id="balance_timeout", schedule=None, start_date=START, params=PARAMS):
    for name, mode in MODES.items():
        GetimgBalanceSensor(task_id=name, timeout=1, **ARGUMENTS, **mode)
        GetimgBalanceSensor(task_id=f"{name}_soft_fail", timeout=1, soft_fail=True, **ARGUMENTS, **mode)
