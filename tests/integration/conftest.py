# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow


@dataclass
class Run:
    """A DAG run that has ended."""

    airflow: Airflow
    dag_id: str
    run_id: str
    state: str

    def tasks(self, task_id: str) -> list[dict[str, Any]]:
        """Return a task's instances, ordered by map index."""
        found = [
            task
            for task in self.airflow.task_instances(self.dag_id, self.run_id)
            if task["task_id"] == task_id
        ]
        return sorted(found, key=lambda task: task["map_index"])

    def tries(self, task_id: str = "generate") -> int:
        """Return the number of the task's tries."""
        return self.tasks(task_id)[0]["try_number"]

    def log(self, task_id: str = "generate", try_number: int = 1, map_index: int = -1) -> str:
        """Return the log of a try."""
        return self.airflow.task_log(self.dag_id, self.run_id, task_id, map_index, try_number)

    def xcom(self, task_id: str = "generate", map_index: int = -1) -> Any:
        """Return a task's return value."""
        return self.airflow.xcom(self.dag_id, self.run_id, task_id, map_index)

    def clear(self, *task_ids: str) -> Run:
        """Clear the tasks as a user would, and wait for the run to end."""
        self.airflow.clear(self.dag_id, self.run_id, task_ids)
        self.state = self.airflow.wait(self.dag_id, self.run_id, timeout=180)
        return self


@pytest.fixture
def run(airflow_stack: Airflow) -> Callable[..., Run]:
    """Return a function that runs a DAG to its end; further arguments are the run's conf."""

    def run_dag(dag_id: str, *, timeout: float = 180, **conf: Any) -> Run:
        airflow_stack.wait_for_dag(dag_id)
        airflow_stack.unpause(dag_id)
        run_id = airflow_stack.trigger(dag_id, conf=conf)
        return Run(airflow_stack, dag_id, run_id, airflow_stack.wait(dag_id, run_id, timeout=timeout))

    return run_dag


@pytest.fixture(scope="session")
def connections(
    airflow_stack: Airflow, simulator_server: GetimgSimulator, state_extra: dict[str, str]
) -> dict[str, str]:
    """Create connections with a short timeout, with no server behind it, and with a wrong key; return their ids."""
    fields: dict[str, dict[str, Any]] = {
        "getimg_hasty": {
            "host": simulator_server.url,
            "password": simulator_server.api_key,
            "extra": {"timeout": 2},
        },
        "getimg_nowhere": {"host": "http://127.0.0.1:1", "password": "sk_nowhere"},
        "getimg_wrong_key": {"host": simulator_server.url, "password": "sk_wrong"},
    }
    for conn_id, values in fields.items():
        extra = json.dumps({**values.pop("extra", {}), **state_extra})
        body = {"connection_id": conn_id, "conn_type": "getimg", "extra": extra, **values}
        airflow_stack.request("POST", "/connections", body=body)
    return {conn_id: conn_id for conn_id in fields}


@pytest.fixture
def prefix(tmp_path) -> str:
    """Return a folder in the bucket for one test."""
    return f"batch/{tmp_path.name}"


@pytest.fixture
def key(prefix: str) -> str:
    """Return the template of the rows' keys."""
    return f"{prefix}/{{row:04}}.{{extension}}"


@pytest.fixture
def begin(airflow_stack: Airflow) -> Iterator[Callable[..., str]]:
    """Yield a function that starts a DAG run and returns its id; runs left over from a failed test are ended."""
    begun: list[tuple[str, str]] = []

    def start(dag_id: str, **conf: Any) -> str:
        airflow_stack.wait_for_dag(dag_id)
        airflow_stack.unpause(dag_id)
        begun.append((dag_id, airflow_stack.trigger(dag_id, conf=conf)))
        return begun[-1][1]

    yield start
    for dag_id, run_id in begun:
        run = f"/dags/{dag_id}/dagRuns/{run_id}"
        if airflow_stack.request("GET", run)["state"] in ("queued", "running"):
            airflow_stack.request("PATCH", run, body={"state": "failed"})
            pids = [task["pid"] for task in airflow_stack.task_instances(dag_id, run_id) if task["pid"]]
            airflow_stack.poll(lambda pids=pids: not any(map(psutil.pid_exists, pids)), 60)
