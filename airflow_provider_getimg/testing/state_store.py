# SPDX-License-Identifier: Apache-2.0
"""A task state store for Airflow 3.1 and 3.2, which have none, so that ``run_dag`` needs no S3."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class MemoryStateStore:
    """The state of one task instance, as Airflow 3.3 would keep it."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value last stored, or the default."""
        return json.loads(self._values[key]) if key in self._values else default

    def set(self, key: str, value: Any, *, retention: object = None) -> None:
        """Store a value."""
        self._values[key] = json.dumps(value, allow_nan=False)

    def delete(self, key: str) -> None:
        """Delete a value, if there is one."""
        self._values.pop(key, None)


@contextmanager
def task_state_stores(states: dict[tuple[object, ...], MemoryStateStore]) -> Iterator[None]:
    """
    Give each task that runs in this process a task state store, if Airflow provides none.

    :param states: The stores, by task instance.
    """
    from airflow_provider_getimg.version_compat import HAS_TASK_STATE_STORE

    if HAS_TASK_STATE_STORE:
        yield
        return
    from unittest.mock import patch

    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    context_of = RuntimeTaskInstance.get_template_context

    def with_state(ti: RuntimeTaskInstance) -> Any:
        context: Any = context_of(ti)
        instance = (ti.dag_id, ti.run_id, ti.task_id, ti.map_index)
        context["task_state_store"] = states.setdefault(instance, MemoryStateStore())
        return context

    with patch.object(RuntimeTaskInstance, "get_template_context", with_state):
        yield
