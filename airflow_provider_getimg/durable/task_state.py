# SPDX-License-Identifier: Apache-2.0
"""Where a task instance keeps state for its next try: Airflow's task state store, or a folder in S3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_getimg.durable.tries import Try
from airflow_provider_getimg.version_compat import AIRFLOW_VERSION, never_expire

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.execution_time.context import TaskStateStoreAccessor

    from airflow_provider_getimg.hooks.getimg import GetimgHook


class StateConflictError(Exception):
    """Another process has written a value since this one found none."""


class TaskState(Protocol):
    """
    JSON values by key, of one task instance, across all its tries.

    A failed read or write may raise any exception.
    """

    #: The name of the store, as the start of a sentence.
    name: str

    def get(self, key: str) -> Any:
        """Return the last value written, or None."""

    def set(self, key: str, value: Any) -> None:
        """
        Store a value, which is durable once this returns.

        :raises StateConflictError: Another process has written one since this one found none. Not every store detects this.
        """

    def delete(self, key: str) -> None:
        """Delete a value, if there is one."""

    def address(self, key: str) -> str:
        """Return where a user finds a value."""


class StateStore:
    """
    Airflow's task state store (3.3 and later), deleted with the run.

    :param folder_error: Why it is unknown whether earlier tries kept their state in a folder instead; None if they didn't.
    """

    name = "The task state store"

    def __init__(self, store: TaskStateStoreAccessor, folder_error: Exception | None = None) -> None:
        self._store = store
        self._folder_error = folder_error

    def get(self, key: str) -> Any:
        """
        Return the last value written, or None.

        :raises Exception: ``folder_error``, if there is no value here.
        """
        value = self._store.get(key)
        if value is not None:
            self._folder_error = None
        elif self._folder_error is not None:
            raise self._folder_error
        return value

    def set(self, key: str, value: Any) -> None:
        """Store a value, which is durable once this returns."""
        self._store.set(key, value, retention=never_expire())

    def delete(self, key: str) -> None:
        """Delete a value, if there is one."""
        self._store.delete(key)

    def address(self, key: str) -> str:
        """Return where a user finds a value."""
        return f"{key!r} from the task's state"


def task_state(
    context: Context, hook: GetimgHook, aws_conn_id: str | None, *, is_resumed: bool = False
) -> TaskState:
    """
    Return the state of a task instance, in the connection's ``state_folder`` if it has one.

    :param aws_conn_id: The AWS connection for a folder that names none.
    :param is_resumed: Whether the try was deferred and already has state.
    :raises ConnectionConfigError: There is nowhere to keep state: no store, and no folder in a usable connection.
    :raises LedgerError: An earlier try has state in a folder, and the connection that names it can't be used.
    """
    from airflow_provider_getimg.api.errors import ConnectionConfigError, LedgerError

    store = context.get("task_state_store")
    is_first = Try.of(context).is_first and not is_resumed
    try:
        folder = hook.state_folder
    except ConnectionConfigError as error:
        if store is None and not is_first:
            raise LedgerError(
                f"What an earlier try did is unknown, because its state_folder is: {error.message}",
                billed="unknown",
            ) from None
        if store is None:
            raise
        # What earlier tries have paid for can be reported or delivered without a connection. Nothing is sent: the hook keeps
        # raising its error.
        return StateStore(store, None if is_first else OSError(error.message.rstrip(".")))
    if folder is not None:
        from airflow_provider_getimg.durable.s3_task_state import S3TaskState

        return S3TaskState(folder, aws_conn_id, context, is_resumed=is_resumed)
    if store is None:
        raise ConnectionConfigError(
            f"Airflow {AIRFLOW_VERSION} has no task state store, which keeps a retry from paying again, and connection "
            f"{hook.getimg_conn_id!r} has no state_folder in its place: set it to an s3://bucket/prefix, or use Airflow 3.3.",
            billed="no" if is_first else "unknown",
        )
    return StateStore(store)
