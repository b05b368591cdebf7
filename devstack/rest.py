# SPDX-License-Identifier: Apache-2.0
"""
A client for Airflow's public REST API, for the demo and the tests.

Not ``apache-airflow-client``: most of this module waits, or retries requests that SQLite rejected. A request is one line
here, returns the plain JSON that the tests compare, and works with every Airflow that the provider supports. The client's
models belong to a single release, and each takes a line to build and another to read.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from devstack.process import LOG_TAIL_LINES, POLL_SECONDS, StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

#: Maximum number of tries of a request while Airflow's database rejects it.
DATABASE_ATTEMPTS = 8
FINAL_STATES = frozenset({"success", "failed"})
# The names of the components in the API server's health report, by those in the compose file.
HEARTBEATS = {
    "postgres": "metadatabase",
    "scheduler": "scheduler",
    "dag-processor": "dag_processor",
    "triggerer": "triggerer",
}
# Scheduler and API server share two cores and one SQLite file with the tasks.
REQUEST_SECONDS = 60.0


class AirflowRest:
    """A client for ``/api/v2`` of an Airflow without a login.

    Every failure is a :class:`devstack.StackError`.

    :param url: The base URL of the Airflow.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=REQUEST_SECONDS, trust_env=False)

    def log_in(self) -> None:
        """Fetch a token, which is valid for a day."""
        token = self._request("GET", "/auth/token").json()["access_token"]
        self._client.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def request(
        self, method: str, path: str, *, params: dict[str, Any] | None = None, body: object = None
    ) -> Any:
        """Call ``/api/v2`` + ``path`` and return the JSON of the response, or None if it has no content.

        :raises devstack.StackError: Airflow refused the request, or could not be reached.
        """
        response = self._request(method, f"/api/v2{path}", params=params, json=body)
        return response.json() if response.content else None

    def health(self) -> dict[str, Any]:
        """Return what the API server reports about each component; empty while it doesn't respond."""
        try:
            response = httpx.get(f"{self.url}/api/v2/monitor/health", trust_env=False, timeout=10)
            report: dict[str, Any] = response.raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return {}
        return report

    def without_heartbeat(self) -> set[str]:
        """Return the names of the components that the API server doesn't report as healthy."""
        report = self.health()
        return {
            name for name, key in HEARTBEATS.items() if (report.get(key) or {}).get("status") != "healthy"
        }

    # DAGs and runs

    def wait_for_dag(self, dag_id: str, timeout: float = 60.0) -> None:
        """Wait until the DAG processor has stored the DAG.

        :raises devstack.StackError: It did not in time; with the import errors so far.
        """

        def is_stored() -> bool:
            dags = self.request("GET", "/dags", params={"dag_id_pattern": dag_id, "limit": 100})
            return any(dag["dag_id"] == dag_id for dag in dags["dags"])

        if not self.poll(is_stored, timeout):
            errors = self.request("GET", "/importErrors")["import_errors"]
            traces = [f"{error['filename']}:\n{error['stack_trace']}" for error in errors]
            raise self._failure(f"No DAG {dag_id} after {timeout:g} s.", "\n".join(traces))

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler run the DAG."""
        self.request("PATCH", f"/dags/{dag_id}", body={"is_paused": False})

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Start a run and return its id."""
        # Without a logical date, templates such as {{ ds }} are undefined.
        body = {"logical_date": datetime.now(UTC).isoformat(), "conf": conf or {}}
        run_id: str = self.request("POST", f"/dags/{dag_id}/dagRuns", body=body)["dag_run_id"]
        return run_id

    def run_dag(
        self,
        dag_id: str,
        conf: dict[str, Any] | None = None,
        timeout: float = 300.0,
        on_change: Callable[[str, str], None] | None = None,
    ) -> str:
        """Run a DAG to completion, and return the run's id.

        :param on_change: As for :meth:`wait`.
        :raises devstack.StackError: There is no such DAG, time is up, or the run failed.
        """
        self.wait_for_dag(dag_id)
        self.unpause(dag_id)
        run_id = self.trigger(dag_id, conf)
        if self.wait(dag_id, run_id, timeout, on_change) != "success":
            raise StackError(f"The run of {dag_id} failed.", self.failed_log(dag_id, run_id))
        return run_id

    def wait(
        self,
        dag_id: str,
        run_id: str,
        timeout: float = 120.0,
        on_change: Callable[[str, str], None] | None = None,
    ) -> str:
        """Wait for the end of a run and return its state, ``success`` or ``failed``.

        :param on_change: Called with task id and state whenever a task instance's state changes;
            the id of a mapped one ends in ``[index]``.
        :raises devstack.StackError: Time is up.
        """
        seen: dict[str, str] = {}

        def final_state() -> str | None:
            state: str = self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"]
            # Read after the run's state, so that the last changes are included.
            if on_change is not None:
                for label, task_state in self._task_states(dag_id, run_id).items():
                    if seen.get(label) != task_state:
                        seen[label] = task_state
                        on_change(label, task_state)
            return state if state in FINAL_STATES else None

        state = self.poll(final_state, timeout)
        if state is None:
            states = self._task_states(dag_id, run_id)
            raise self._failure(f"{dag_id} did not end in {timeout:g} s: {states}.")
        return state

    def clear(
        self,
        dag_id: str,
        run_id: str,
        task_ids: Sequence[str | tuple[str, int]],
        *,
        include_downstream: bool = False,
    ) -> None:
        """Clear task instances as the UI's button does; the run continues.

        :param task_ids: Task ids, or pairs of task id and map index.
        """
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [task if isinstance(task, str) else list(task) for task in task_ids],
            "only_failed": False,
            "include_downstream": include_downstream,
            "reset_dag_runs": True,
        }
        self.request("POST", f"/dags/{dag_id}/clearTaskInstances", body=body)

    # Task instances

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """List the run's task instances as the API describes them, oldest first."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        found: list[dict[str, Any]] = []
        while True:
            page = self.request("GET", path, params={"limit": 100, "offset": len(found)})
            found += page["task_instances"]
            if len(found) >= page["total_entries"] or not page["task_instances"]:
                return found

    def task_log(
        self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, try_number: int = 1
    ) -> str:
        """Return the log of one try as text, as the UI shows it."""
        response = self.request(
            "GET",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}",
            params={"map_index": map_index, "full_content": True},
        )
        return "\n".join(map(_log_line, response["content"]))

    def failed_log(self, dag_id: str, run_id: str, lines: int = LOG_TAIL_LINES) -> str:
        """Return the last log lines of each failed task instance, under its name."""
        parts = []
        for task in self.task_instances(dag_id, run_id):
            if task["state"] == "failed":
                log = self.task_log(dag_id, run_id, task["task_id"], task["map_index"], task["try_number"])
                last = [line for line in log.splitlines() if "group::" not in line][-lines:]
                parts.append("\n".join([f"{_label(task)} (try {task['try_number']}):", *last]))
        return "\n\n".join(parts)

    def xcom(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: int = -1,
        key: str = "return_value",
    ) -> Any:
        """Return the XCom's value."""
        return self.request(
            "GET",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}",
            params={"map_index": map_index, "deserialize": True},
        )["value"]

    def task_state(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return the task instance's entries in the task state store, by key."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/state-store"
        response = self.request("GET", path, params={"map_index": map_index, "limit": 100})
        return {entry["key"]: entry["value"] for entry in response["task_state_store"]}

    def rendered_fields(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return the task instance's rendered template fields."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/{map_index}"
        fields: dict[str, Any] = self.request("GET", path)["rendered_fields"]
        return fields

    def create_pool(self, name: str, slots: int, *, include_deferred: bool = False) -> None:
        """Create a pool."""
        pool = {"name": name, "slots": slots, "include_deferred": include_deferred}
        self.request("POST", "/pools", body=pool)

    def _task_states(self, dag_id: str, run_id: str) -> dict[str, str]:
        tasks = self.task_instances(dag_id, run_id)
        return {_label(task): task["state"] or "none" for task in tasks}

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(DATABASE_ATTEMPTS):
            try:
                response = self._client.request(method, path, **options)
            except httpx.HTTPError as error:
                raise self._failure(f"{method} {path}: {error!r}") from None
            # Another Airflow process was writing to SQLite: the whole request was rolled back.
            if response.status_code != 500 or "Database error" not in response.text:
                break
            time.sleep(POLL_SECONDS * 3 * (attempt + 1))
        if response.is_error:
            raise self._failure(f"{method} {path}: {response.status_code} {response.text[:500]}")
        return response

    def poll(self, check: Callable[[], T | None], timeout: float) -> T | None:
        """Call ``check`` until it returns something truthy, and return that; None after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            if result := check():
                return result
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_SECONDS * 3)

    def _failure(self, message: str, log_tail: str = "") -> StackError:
        return StackError(message, log_tail)


def _label(task: dict[str, Any]) -> str:
    index = task["map_index"]
    return str(task["task_id"]) if index < 0 else f"{task['task_id']}[{index}]"


def _log_line(entry: dict[str, Any] | str) -> str:
    """Format a structured log entry as one line, an exception as several."""
    if isinstance(entry, str):
        return entry
    parts = [str(entry.get("timestamp") or ""), str(entry.get("level") or "").upper()]
    line = " ".join(part for part in [*parts, str(entry.get("event", ""))] if part)
    for error in entry.get("error_detail") or []:
        # Airflow's own twenty frames would push the ones that matter out of the last lines.
        frames = [f for f in error.get("frames") or [] if "site-packages" not in f["filename"]]
        for frame in frames:
            line += f"\n  {frame['filename']}:{frame['lineno']} in {frame['name']}"
        line += f"\n{error.get('exc_type')}: {error.get('exc_value')}"
    return line
