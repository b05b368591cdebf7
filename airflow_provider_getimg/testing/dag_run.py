# SPDX-License-Identifier: Apache-2.0
"""One run of a DAG in this process, and its result."""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow_provider_getimg.testing.state_store import MemoryStateStore, task_state_stores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow.models.dagrun import DagRun
    from airflow.sdk import DAG

T = TypeVar("T")
# A task's id and its map index, -1 if it isn't mapped.
Instance = tuple[str, int]

RETURN_VALUE = "return_value"
NEVER_RAN = "The task failed without an error of its own: see the captured log."


class PerTask(dict[str, T], Generic[T]):
    """A dict by task id whose ``KeyError`` lists the ids that it holds."""

    def __init__(self, what: str, values: Mapping[str, T]) -> None:
        super().__init__(values)
        self._what = what

    def __missing__(self, task_id: str) -> T:
        held = ", ".join(map(repr, self)) or "none"
        raise KeyError(f"no {self._what} of a task {task_id!r}; there are those of: {held}")


@dataclass(frozen=True)
class DagRunResult:
    """
    A finished run.

    In each dict, the value of a mapped task, or of one in a mapped task group, is a list by map index, even if it was
    mapped over a single item or none.
    """

    dag_id: str
    run_id: str
    #: ``success`` or ``failed``.
    state: str
    #: The state of each task: ``success``, ``failed``, ``skipped``, ``upstream_failed``, ...
    states: dict[str, Any]
    #: The number of tries of each task: 2 means one retry.
    tries: dict[str, Any]
    #: What each task returned, if anything; in a list, ``None`` stands for nothing.
    xcoms: dict[str, Any]
    #: The last error's message of each failed task; in a list, ``None`` stands for one that did not fail.
    failures: dict[str, Any]
    #: The same, as the exceptions that were raised. ``None`` if the task never ran.
    errors: dict[str, Any]
    _pushed: dict[str, PerTask[Any]] = field(repr=False)

    def xcom(self, task_id: str, key: str = RETURN_VALUE) -> Any:
        """
        Return an XCom under any key.

        :param key: Default: the return value, as in ``xcoms``.
        :raises KeyError: The task pushed nothing under that key.
        """
        return (self._pushed.get(key) or PerTask(f"XCom {key!r}", {}))[task_id]


class DagRunner:
    """
    Runs DAGs with ``dag.test()``: in this process, one task at a time, against the database of ``getimg_airflow``.

    :param keep_runs: Keep the runs in the database after the test.
    """

    def __init__(self, *, keep_runs: bool) -> None:
        self._keep_runs = keep_runs
        self._dag_ids: set[str] = set()
        self._states: dict[tuple[object, ...], MemoryStateStore] = {}

    def __call__(
        self,
        dag: DAG,
        *,
        expect: str | None = "success",
        run_conf: dict[str, Any] | None = None,
        logical_date: datetime | None = None,
        connections: Mapping[str, str | Mapping[str, Any]] | None = None,
        variables: Mapping[str, object] | None = None,
        wait_for_retries: bool = False,
    ) -> DagRunResult:
        """
        Run a DAG to completion.

        :param expect: The required final state, ``success`` or ``failed``: otherwise the test fails with the tasks' error
            messages. ``None`` accepts either.
        :param run_conf: The run's conf; it overrides the DAG's params of the same names.
        :param logical_date: With a time zone. Default: now.
        :param connections: Additional Airflow connections for this run, by id: each as JSON, a URI or a mapping such as
            ``{"conn_type": "aws"}``.
        :param variables: Airflow Variables for this run, by name: strings, or values that JSON can represent.
        :param wait_for_retries: Wait the real delay between tries. Default: retry immediately, whatever ``retry_delay`` or the
            retry policy says.
        :raises TypeError: ``dag`` is not a DAG.
        :raises ValueError: ``expect`` or ``logical_date`` is invalid.
        """
        __tracebackhide__ = True
        import pytest
        from airflow.sdk import DAG

        if not isinstance(dag, DAG):
            hint = ": call it first" if callable(dag) else ""
            raise TypeError(f"run_dag takes a DAG, not a {type(dag).__name__}{hint}.")
        if expect not in ("success", "failed", None):
            raise ValueError(f"expect must be 'success', 'failed' or None, got {expect!r}.")
        self._dag_ids.add(dag.dag_id)
        if logical_date is not None and not (
            isinstance(logical_date, datetime) and logical_date.tzinfo is not None
        ):
            raise ValueError(f"logical_date must be a datetime with a time zone, got {logical_date!r}.")
        dates: dict[str, Any] = {} if logical_date is None else {"logical_date": logical_date}
        with (
            pytest.MonkeyPatch.context() as patch,
            nullcontext() if wait_for_retries else immediate_retries(),
            listening(dag.dag_id) as errors,
            task_state_stores(self._states),
        ):
            for conn_id, value in (connections or {}).items():
                text = value if isinstance(value, str) else json.dumps(value)
                patch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", text)
            for name, variable in (variables or {}).items():
                text = variable if isinstance(variable, str) else json.dumps(variable)
                patch.setenv(f"AIRFLOW_VAR_{name.upper()}", text)
            register(dag)
            result = read_result(dag, dag.test(run_conf=run_conf, **dates), errors)
        if expect and result.state != expect:
            told = "".join(f"\n{task_id}: {message}" for task_id, message in result.failures.items())
            pytest.fail(
                f"The run of the DAG {dag.dag_id!r} ended as {result.state!r}, not as {expect!r}.{told}",
                pytrace=False,
            )
        return result

    def forget(self) -> None:
        """Delete the runs of this test: in the next one, a DAG with ``depends_on_past`` would wait for them."""
        if self._keep_runs or not self._dag_ids:
            return
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session
        from sqlalchemy import delete

        with create_session() as session:
            session.execute(delete(DagRun).where(DagRun.dag_id.in_(self._dag_ids)))


@contextmanager
def immediate_retries() -> Iterator[None]:
    """Make every retry immediate. This one patch covers ``retry_delay``, backoff and retry policies."""
    from unittest.mock import patch

    from airflow.models.taskinstance import TaskInstance

    with patch.object(TaskInstance, "next_retry_datetime", lambda task_instance: task_instance.end_date):
        yield


@contextmanager
def listening(dag_id: str) -> Iterator[dict[Instance, Any]]:
    """Collect the errors of a DAG's task instances, by task id and map index."""
    from airflow.listeners import hookimpl

    from airflow_provider_getimg.version_compat import get_listener_manager

    errors: dict[Instance, Any] = {}

    class Listener:
        @hookimpl
        def on_task_instance_failed(self, task_instance: Any, error: Any) -> None:
            if task_instance.dag_id == dag_id:
                errors[task_instance.task_id, task_instance.map_index] = error

    manager, listener = get_listener_manager(), Listener()
    manager.add_listener(listener)
    try:
        yield errors
    finally:
        manager.pm.unregister(listener)


def register(dag: DAG) -> None:
    """Write the DAG to the database: ``dag.test()`` does so only for DAGs in the DAGs folder."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    from airflow_provider_getimg.version_compat import write_dag

    manager = DagBundlesManager()  # type: ignore[no-untyped-call]
    manager.sync_bundles_to_db()
    bundles = {bundle.name: bundle for bundle in manager.get_all_dag_bundles()}
    with create_session() as session:
        known = session.get(DagModel, dag.dag_id)
        # A DAG that the deployment knows stays in its bundle.
        name = known.bundle_name if known is not None else None
    bundle = bundles.get(name or "") or next(iter(bundles.values()))
    write_dag(dag, bundle)


def read_result(dag: DAG, run: DagRun, errors: Mapping[Instance, Any]) -> DagRunResult:
    """Read the result of a run from the database."""
    from airflow.models.xcom import XComModel
    from airflow.sdk.execution_time.xcom import XCom
    from airflow.utils.session import create_session

    with create_session() as session:
        instances = sorted(run.get_task_instances(session=session), key=lambda ti: ti.map_index)
        rows: Any = session.scalars(XComModel.get_many(run_id=run.run_id, dag_ids=dag.dag_id))
        pushed: dict[str, dict[Instance, Any]] = {RETURN_VALUE: {}}
        for row in rows:
            pushed.setdefault(row.key, {})[row.task_id, row.map_index] = XCom.deserialize_value(row)
    by_instance: dict[Instance, Any] = {(ti.task_id, ti.map_index): ti for ti in instances}
    failed = [instance for instance, ti in by_instance.items() if ti.state == "failed"]
    tasks = {
        task_id: [instance for instance in by_instance if instance[0] == task_id] for task_id in dag.task_ids
    }

    def gather(what: str, values: Mapping[Instance, Any], *, all_mapped: bool) -> PerTask[Any]:
        """Group values by task, as lists for mapped tasks: all of them, or only those with a value."""
        gathered: dict[str, Any] = {}
        for task_id, own in tasks.items():
            if is_mapped(dag, task_id):
                if all_mapped or any(instance in values for instance in own):
                    # A task that was mapped over nothing, or never expanded, has an instance with the index -1.
                    gathered[task_id] = [
                        values.get(instance) for instance in own if instance[1] >= 0 or instance in values
                    ]
            elif (task_id, -1) in values:
                gathered[task_id] = values[task_id, -1]
        return PerTask(what, gathered)

    states = {instance: ti.state and str(ti.state) for instance, ti in by_instance.items()}
    tries = {instance: ti.try_number for instance, ti in by_instance.items()}
    return DagRunResult(
        dag_id=dag.dag_id,
        run_id=run.run_id,
        state=str(run.state),
        states=gather("state", states, all_mapped=True),
        tries=gather("number of tries", tries, all_mapped=True),
        xcoms=gather("XCom", pushed[RETURN_VALUE], all_mapped=True),
        failures=gather("failure", {one: message_of(errors.get(one)) for one in failed}, all_mapped=False),
        errors=gather("error", {one: errors.get(one) for one in failed}, all_mapped=False),
        _pushed={key: gather(f"XCom {key!r}", values, all_mapped=False) for key, values in pushed.items()},
    )


def is_mapped(dag: DAG, task_id: str) -> bool:
    """Return whether a task, or a task group that contains it, is mapped."""
    task = dag.get_task(task_id)
    return bool(getattr(task, "is_mapped", False)) or task.get_closest_mapped_task_group() is not None


def message_of(error: object) -> str:
    """Return the message of a task's error, or its class name if it has none."""
    if error is None:
        return NEVER_RAN
    return str(error) or type(error).__name__
