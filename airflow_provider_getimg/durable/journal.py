# SPDX-License-Identifier: Apache-2.0
"""
Writes many entries together to the state of one task.

The state has no list call, and each write takes about 10 ms, however small. So the entries of a batch's rows are kept in
numbered segments: a commit rewrites the last segment with all changes since the previous commit, so each change waits for
only one commit. A full segment is never rewritten, even after a Clear. Segments are read in order; the last entry for a
row wins.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_getimg.api.errors import Billed, LedgerError
from airflow_provider_getimg.api.signed_urls import reason
from airflow_provider_getimg.durable.ledger import Entry
from airflow_provider_getimg.durable.task_state import StateConflictError

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow.sdk.types import Logger

    from airflow_provider_getimg.durable.task_state import TaskState
    from airflow_provider_getimg.durable.tries import Try

#: Keys of the segments in the task's state.
KEY = "getimg_batch_{number:04}"
#: The maximum size of a segment. Airflow warns from 64 KB on, and each commit writes the whole segment.
SEGMENT_BYTES = 24 * 1024


@dataclass(frozen=True, slots=True)
class _Change:
    """An entry waiting to be written, with its size in bytes."""

    key: str
    value: Any
    size: int
    written: Future[None] = field(default_factory=Future)


class Journal:
    """
    The entries of a batch. Use it as a context manager: exiting writes what is still queued.

    :param state: The task's state.
    :param this_try: The current try. Entries of another epoch, from before a Clear, count only if they are owed: a paid response
        without a note that its files are saved.
    :param log: The task's log.
    :raises LedgerError: On entering: the store or its content could not be read.
    """

    def __init__(self, state: TaskState, this_try: Try, log: Logger) -> None:
        #: The name of the store, as the start of a sentence.
        self.name = state.name
        self._state = state
        # State that can't be read may hold paid requests, unless this is the first try.
        self._billed: Billed = "no" if this_try.is_first else "unknown"
        self._epoch = this_try.epoch
        self._log = log
        self._earlier: dict[str, Any] = {}
        self._number = 0
        self._segment: dict[str, Any] = {}
        self._segment_bytes = 0
        self._changed = threading.Condition()
        self._queue: deque[_Change] = deque()
        self._closing = False
        self._writer = threading.Thread(target=self._write_queued, name="getimg-journal", daemon=True)

    def __enter__(self) -> Self:
        self._read()
        self._writer.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is still queued, and stop the writer. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._writer.join()

    def get(self, key: str) -> Any:
        """Return the last value that earlier tries wrote under this key, or None."""
        return self._earlier.get(key)

    def entries(self, *, other_than: Collection[str] = ()) -> dict[str, Entry]:
        """
        Return the request entries that earlier tries wrote, by key. Skips unreadable ones: their rows' ledgers report them.

        :param other_than: Keys to leave out.
        """
        notes = {saved_key(key) for key in self._earlier}.union(other_than)
        entries: dict[str, Entry] = {}
        for key, value in self._earlier.items():
            with suppress(ValueError):
                if key not in notes and (entry := Entry.from_json(value)) is not None:
                    entries[key] = entry
        return entries

    def is_saved(self, key: str) -> bool:
        """Return whether an earlier try noted where an entry's files are saved."""
        return isinstance(self.get(saved_key(key)), list)

    def set(self, key: str, value: Any) -> None:
        """
        Write an entry; it is durable once this returns.

        :raises Exception: Whatever the store raised.
        """
        self.write_later(key, value).result()

    def write_later(self, key: str, value: Any) -> Future[None]:
        """Queue an entry for the next commit. A value of None means that there is no entry."""
        change = _Change(key, value, len(key) + len(json.dumps(value)))
        with self._changed:
            if self._closing:
                raise RuntimeError("The journal is closed.")
            self._queue.append(change)
            self._changed.notify_all()
        return change.written

    def delete(self, key: str) -> None:
        """Delete an entry; this is durable once it returns."""
        self.set(key, None)

    def address(self, _key: str) -> str:
        """Return where a user finds the first segment."""
        return self._state.address(KEY.format(number=0))

    def _read(self) -> None:
        latest: dict[str, tuple[int, Any]] = {}
        number = missing = 0
        # A user may have deleted an unreadable segment: those after it still count.
        while missing < 2:
            segment = self._segment_at(number)
            number += 1
            missing = 0 if segment is not None else missing + 1
            if segment is not None:
                epoch, entries = segment
                latest |= {key: (epoch, value) for key, value in entries.items()}
        # Existing segments are never rewritten: a failed commit can't corrupt them.
        self._number = number - missing
        owed = {
            key
            for key, (epoch, _) in latest.items()
            if epoch != self._epoch and _is_owed(key, latest, self._epoch)
        }
        self._earlier = {
            key: value for key, (epoch, value) in latest.items() if epoch == self._epoch or key in owed
        }
        if any(epoch != self._epoch for epoch, _ in latest.values()):
            self._log.info("The task was cleared. %s", _owed_sentence(len(owed)))

    def _segment_at(self, number: int) -> tuple[int, dict[str, Any]] | None:
        key = KEY.format(number=number)
        try:
            segment = self._state.get(key)
        except Exception as error:
            raise LedgerError(
                f"{self._state.name} could not be read: {reason(error)}.", billed=self._billed
            ) from None
        if segment is None:
            return None
        try:
            return int(segment["epoch"]), dict(segment["entries"])
        except (TypeError, LookupError, ValueError):
            raise LedgerError(
                "What an earlier try did is unknown, because part of the task's state can't be read. This try sent nothing. Delete "
                f"{self._state.address(key)} to continue; it may contain paid responses.",
                billed="unknown",
            ) from None

    def _write_queued(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                changes = self._next()
            if not changes:
                return
            try:
                self._commit({change.key: change.value for change in changes}, sum(c.size for c in changes))
            except BaseException as error:
                for change in changes:
                    change.written.set_exception(error)
            else:
                for change in changes:
                    change.written.set_result(None)

    def _next(self) -> list[_Change]:
        """Dequeue the changes that fit into one segment, at least one."""
        changes: list[_Change] = []
        size = 0
        while self._queue and (not changes or size + self._queue[0].size <= SEGMENT_BYTES):
            changes.append(self._queue.popleft())
            size += changes[-1].size
        return changes

    def _commit(self, changes: dict[str, Any], size: int) -> None:
        number, segment, held = self._number, self._segment, self._segment_bytes
        if segment and held + size > SEGMENT_BYTES:
            number, segment, held = number + 1, {}, 0
        segment = segment | changes
        try:
            self._state.set(KEY.format(number=number), {"epoch": self._epoch, "entries": segment})
        except StateConflictError:
            # The segment belongs to another process: the next commit starts a new one after it.
            self._number, self._segment, self._segment_bytes = number + 1, {}, 0
            raise
        except BaseException:
            # It may have been written anyway, and a later segment wins: further changes go into this one.
            if number != self._number:
                self._number, self._segment, self._segment_bytes = number, {}, 0
            raise
        self._number, self._segment, self._segment_bytes = number, segment, held + size


def saved_key(key: str) -> str:
    """Return the key of the note on an entry's files: where they are saved, or that they are gone."""
    return f"{key}/saved"


def _owed_sentence(rows: int) -> str:
    if not rows:
        return "No row was billed but not saved before."
    if rows == 1:
        return "1 row was billed but not saved before; it is saved without paying again."
    return f"{rows} rows were billed but not saved before; they are saved without paying again."


def _is_owed(key: str, latest: dict[str, tuple[int, Any]], now: int) -> bool:
    """Return whether an entry of an earlier epoch holds a response whose files were not saved before the Clear."""
    epoch, value = latest[key]
    if not isinstance(value, dict) or value.get("response") is None:
        return False
    noted_in, note = latest.get(saved_key(key), (epoch, None))
    # An older note refers to the previous image; a note of this epoch refers to this image, saved after the Clear.
    return note is None or noted_in < epoch or noted_in == now
