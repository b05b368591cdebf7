# SPDX-License-Identifier: Apache-2.0
"""
Keeps the state of a task instance in a folder in S3, for Airflow without a task state store, or to relieve its database.

Each entry is one object::

    {prefix}/{dag_id}/{run_id}/{task_id}/{map_index}/{run's start}-{deployment}/{key}.json

Nothing there is deleted with the run, and two deployments may share the folder. So each run has its own folder, named after
the run's start time and the deployment (a digest of ``[api] base_url``):

- A retry finds it by the exact start time.
- A Clear gives the run a new start time. The task continues in the latest folder of its deployment.
- A run that was never cleared, and a first try, use only the folder of their start time: a run that was deleted and recreated
  under the same id is a new run. If there are other folders, the first try writes a marker, so that its own retries and Clears
  find the right one.
- A first try that resumes after a deferral also continues in the latest folder: clearing another task restarts the run.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import contextmanager
from datetime import UTC
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_getimg.api.errors import GetimgError
from airflow_provider_getimg.durable.task_state import StateConflictError
from airflow_provider_getimg.durable.tries import Try
from airflow_provider_getimg.s3.connection import s3_hook
from airflow_provider_getimg.s3.store import OccupiedKeyError, S3Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_getimg.hooks.state_folder import StateFolder

_JSON = "application/json"
# S3 allows 1024 bytes for a key, and Airflow 250 characters for each id.
_NAME_CHARACTERS = 180


class S3TaskState:
    """
    The state of one task instance. Connects only when used.

    A new entry is written only if there is none yet, where the store supports conditional writes: of two processes that
    believe each other dead, one sends nothing.

    :param folder: The connection's ``state_folder``.
    :param aws_conn_id: The AWS connection, if the folder names none.
    :param context: The task's context.
    :param is_resumed: Whether the try was deferred and already has state.
    """

    def __init__(
        self, folder: StateFolder, aws_conn_id: str | None, context: Context, *, is_resumed: bool = False
    ) -> None:
        self.name = f"The state folder {folder}"
        self._bucket = folder.bucket
        self._aws_conn_id = folder.aws_conn_id or aws_conn_id
        ti, run = context["ti"], context["dag_run"]
        names = (ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index))
        self._task_folder = "/".join(filter(None, (folder.prefix, *map(_file_name, names)))) + "/"
        # A run that was never cleared has the same start time in all its tries.
        self._may_go_on = bool(run.clear_number) and (is_resumed or not Try.of(context).is_first)
        started = (run.start_date or run.run_after).astimezone(UTC)
        self._started = f"{started:%Y%m%dT%H%M%S.%fZ}"
        deployment = conf.get("api", "base_url", fallback="").rstrip("/")
        self._deployment = hashlib.sha256(deployment.encode()).hexdigest()[:8]
        # Keys that are known to hold a value.
        self._held: set[str] = set()

    def get(self, key: str) -> Any:
        """Return the last value written, or None."""
        with _without_a_bill():
            content = self._store.read(self._bucket, self._key(key))
        if content is None:
            return None
        self._held.add(key)
        return json.loads(content)

    def set(self, key: str, value: Any) -> None:
        """
        Store a value, which is durable once this returns.

        :raises StateConflictError: Another process has written a value since this one looked.
        """
        content = json.dumps(value, allow_nan=False).encode()
        with _without_a_bill():
            is_own = self._put(key, content)
        # Even if another process wrote it: a paid response, whose write is retried, replaces that value.
        self._held.add(key)
        if not is_own:
            raise StateConflictError(f"another process has written {self.address(key)}")

    def _put(self, key: str, content: bytes) -> bool:
        """Write an entry, and return whether the stored one is this process's own."""
        try:
            self._store.put_text(self._bucket, self._key(key), content, _JSON, replaces=key in self._held)
        except OccupiedKeyError:
            # It may be this very write: botocore retries one whose response was lost.
            return self._store.read(self._bucket, self._key(key)) == content
        return True

    def delete(self, key: str) -> None:
        """Delete a value, if there is one."""
        self._store.client.delete_object(Bucket=self._bucket, Key=self._key(key))
        self._held.discard(key)

    def address(self, key: str) -> str:
        """Return where a user finds a value."""
        return f"s3://{self._bucket}/{self._key(key)}"

    @cached_property
    def _store(self) -> S3Store:
        return S3Store(s3_hook(self._aws_conn_id, 1), extra_args=None)

    def _key(self, key: str) -> str:
        return f"{self._run_folder}/{key}.json"

    @cached_property
    def _run_folder(self) -> str:
        own = f"{self._started}-{self._deployment}"
        found = sorted(self._store.folders(self._bucket, self._task_folder))
        for name in found:
            # An exact match, to the microsecond, whatever deployment address this worker is configured with.
            if name.startswith(f"{self._started}-"):
                return self._task_folder + name
        earlier = [name for name in found if name.endswith(f"-{self._deployment}")]
        if earlier and self._may_go_on:
            return self._task_folder + earlier[-1]
        folder = self._task_folder + own
        if found:
            self._store.put_text(self._bucket, f"{folder}/run.json", b"{}", _JSON)
        return folder


@contextmanager
def _without_a_bill() -> Iterator[None]:
    """Raise S3 errors with the reason alone: the caller adds what was billed."""
    try:
        yield
    except GetimgError as error:
        raise OSError(error.message.rstrip(".")) from None


def _file_name(name: str) -> str:
    """Escape a name for one part of a key, using only characters that every store and proxy leaves unchanged."""
    escaped = re.sub(
        r"[^\w.=-]", lambda found: "".join(f"~{byte:02X}" for byte in found[0].encode()), name, flags=re.ASCII
    )
    if len(escaped) <= _NAME_CHARACTERS:
        return escaped
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"{escaped[: _NAME_CHARACTERS - 33]}-{digest}"
