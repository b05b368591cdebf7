# SPDX-License-Identifier: Apache-2.0
"""Airflow's public REST API, called within the API server with the viewer's own login."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx
from fastapi import HTTPException
from fastapi.concurrency import run_in_threadpool

from airflow_provider_getimg.records import IMAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

_AIRFLOW = "getimg.airflow"
# The headers that identify the viewer.
_LOGIN_HEADERS = ("authorization", "cookie")
_ANY = "~"
NEWEST_RUN_FIRST = ("-run_after", "-timestamp")
NEWEST_FIRST = ("-timestamp",)


class AirflowAppMiddleware:
    """Middleware that records Airflow's own app, which an app mounted in it can't see."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Record the app, then pass the request on."""
        if scope["type"] == "http":
            scope[_AIRFLOW] = scope["app"]
        await self.app(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Task:
    """A task instance that saved images; ``saved_at`` is when it recorded that, ``run_after`` is its run's."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    saved_at: str = ""
    run_after: str = ""

    @property
    def path(self) -> str:
        """Its part of a gallery URL."""
        names = (quote(name, safe="") for name in (self.dag_id, self.run_id, self.task_id))
        return f"{'/'.join(names)}/{self.map_index}"

    @property
    def airflow_path(self) -> str:
        """The path of its log in Airflow's UI."""
        dag, run, task = (quote(name, safe="") for name in (self.dag_id, self.run_id, self.task_id))
        mapped = f"/mapped/{self.map_index}" if self.map_index >= 0 else ""
        return f"dags/{dag}/runs/{run}/tasks/{task}{mapped}"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tasks to list; empty means all. ``after`` and ``before`` bound the time of the run, in ISO 8601."""

    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    map_index: int | None = None
    after: str = ""
    before: str = ""


class AirflowApi:
    """
    ``/api/v2`` with the viewer's permissions: what Airflow denies them is denied here.

    :param request: The viewer's request.
    :param may_read: Returns whether the viewer may read the XComs of a DAG; it may block.
    """

    def __init__(self, request: Request, may_read: Callable[[str], bool]) -> None:
        self._may_read = may_read
        self._known: dict[str, bool] = {}
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=request.scope[_AIRFLOW], raise_app_exceptions=False),
            base_url=f"{request.url.scheme}://{request.url.netloc}/api/v2",
            headers={name: request.headers[name] for name in _LOGIN_HEADERS if name in request.headers}
            | {"accept-encoding": "identity"},
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def list_tasks(
        self,
        which: Filter,
        *,
        offset: int,
        limit: int,
        key: str = IMAGES,
        order_by: tuple[str, ...] = NEWEST_RUN_FIRST,
    ) -> tuple[list[Task], int]:
        """Return one page of the tasks that pushed an XCom with this key, and the total number of them."""
        names = (which.dag_id or _ANY, which.run_id or _ANY, which.task_id or _ANY)
        given = {
            "map_index": which.map_index,
            "run_after_gte": which.after,
            "run_after_lt": which.before,
        }
        response = await self._get(
            _entries(*names),
            {"xcom_key": key, "order_by": list(order_by), "offset": offset, "limit": limit}
            | {name: value for name, value in given.items() if value not in ("", None)},
        )
        tasks = [
            Task(
                entry["dag_id"],
                entry["run_id"],
                entry["task_id"],
                entry["map_index"],
                entry["timestamp"],
                entry["run_after"],
            )
            for entry in response["xcom_entries"]
        ]
        return tasks, response["total_entries"]

    async def readable(self, tasks: list[Task]) -> list[Task]:
        """
        Return the tasks whose XComs the viewer may read.

        Airflow lists the XComs of every DAG that the viewer may read, and checks the XCom permission only for their values.
        """
        for dag_id in {task.dag_id for task in tasks} - self._known.keys():
            self._known[dag_id] = await run_in_threadpool(self._may_read, dag_id)
        return [task for task in tasks if self._known[task.dag_id]]

    async def newest_run(self, which: Filter) -> str:
        """Return the ``run_after`` of the newest run, or an empty string."""
        given = {"run_after_gte": which.after, "run_after_lt": which.before}
        response = await self._get(
            f"/dags/{_name(which.dag_id or _ANY)}/dagRuns",
            {"order_by": "-run_after", "limit": 1} | {name: value for name, value in given.items() if value},
        )
        return str(response["dag_runs"][0]["run_after"]) if response["dag_runs"] else ""

    async def xcom(self, task: Task, key: str) -> tuple[Any, str]:
        """Return the value of a task's XCom and when it was pushed."""
        path = f"{_entries(task.dag_id, task.run_id, task.task_id)}/{quote(key, safe='')}"
        response = await self._get(path, {"map_index": task.map_index})
        value = response["value"]
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = None
        return value, response["timestamp"]

    async def _get(self, path: str, params: Mapping[str, Any]) -> Any:
        response = await self._client.get(path, params=dict(params))
        if response.status_code in (401, 403, 404):
            raise HTTPException(response.status_code)
        if response.status_code != 200:
            raise HTTPException(502, f"Airflow's API returned {response.status_code}.")
        return response.json()


def _entries(dag_id: str, run_id: str, task_id: str) -> str:
    """Return the path of a task's XComs; each name may be ``~``."""
    dag, run, task = map(_name, (dag_id, run_id, task_id))
    return f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/xcomEntries"


def _name(name: str) -> str:
    """
    Return a name as a path segment.

    :raises HTTPException: The name would lead to another path.
    """
    if name in (".", "..") or "/" in name or "\\" in name:
        raise HTTPException(404)
    return quote(name, safe="~")
