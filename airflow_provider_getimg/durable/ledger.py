# SPDX-License-Identifier: Apache-2.0
"""
Records what this task has requested and paid for, across its tries.

The task's state (:mod:`~airflow_provider_getimg.durable.task_state`) survives a failed try, a killed worker and, unlike XCom,
the start of the next try. The ledger writes to it before a generation request is sent and right after its response, so the
next try knows how the last one ended:

- no entry: nothing was sent;
- ``submitted``: the request was sent, and no response was seen. It may have been billed;
- ``completed``: the request was paid for, and the entry holds its response.

A video has two more states, because its first response is only an id:

- ``pending``: it was submitted and is being generated under this id;
- ``failed``: the API could not generate it.

An entry applies to the same request (by fingerprint) in the same epoch (``ti.max_tries``: constant over automatic
retries, raised when a user clears the task). After a Clear, a paid response that was never delivered still applies, and so
does a video that is being generated: a Clear regenerates only what was delivered.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from tenacity import Retrying, stop_after_attempt, wait_exponential

from airflow_provider_getimg.api.errors import LedgerError
from airflow_provider_getimg.api.signed_urls import reason
from airflow_provider_getimg.api.types import Generation
from airflow_provider_getimg.durable.tries import Try

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.types import Logger

    from airflow_provider_getimg.durable.task_state import TaskState

KEY = "getimg_generation"
_WRITES = 5
_RECEIVED_CHARACTERS = 16_384


@dataclass(frozen=True)
class Entry:
    """
    One request and what is known about it.

    :param state: ``submitted``, ``pending``, ``failed`` or ``completed``.
    :param fingerprint: Digest of the request.
    :param epoch: ``ti.max_tries`` when it was sent.
    :param try_number: The number of the try that sent it.
    :param started_at: When it was sent, ISO 8601 in UTC.
    :param response: The API's response, once ``completed``.
    :param failure: What the try that sent it got instead of a response, if it lived to record that.
    :param received: A response that could not be read, as received.
    :param sent_before: How many earlier requests were, or may have been, billed without a usable result: in this epoch, or for an
        image that is owed. Generations in ``replaced`` are not counted.
    :param replaced: Earlier generations that were billed and replaced, most because their files are gone: id and cost in USD.
    :param delivered: Whether the response reached the task's XCom: a Clear then generates a new one.
    :param video_id: The id of the submitted video.
    """

    state: Literal["submitted", "pending", "failed", "completed"]
    fingerprint: str
    epoch: int
    try_number: int
    started_at: str
    response: dict[str, Any] | None = None
    failure: str | None = None
    received: str | None = None
    sent_before: int = 0
    replaced: list[list[str]] | None = None
    delivered: bool = False
    video_id: str | None = None

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """
        Parse an entry; return None if there is none.

        Ignores fields from later versions.

        :raises ValueError: There is one, and it can't be parsed.
        """
        if value is None:
            return None
        try:
            entry = cls(**{field.name: value[field.name] for field in fields(cls) if field.name in value})
        except TypeError as error:
            raise ValueError(f"its entry is not valid in this version ({error})") from None
        states = ("submitted",) if entry.video_id is None else ("pending", "failed")
        sound = entry.state in (states if entry.response is None else ("completed",)) and all(
            type(number) is int for number in (entry.epoch, entry.try_number, entry.sent_before)
        )
        if not sound:
            raise ValueError("its entry is inconsistent")
        datetime.fromisoformat(entry.started_at)
        _ = entry.generation
        _ = entry.replaced_costs
        return entry

    @cached_property
    def generation(self) -> Generation | None:
        """The parsed response, or None."""
        return None if self.response is None else Generation.from_json(self.response)

    @cached_property
    def replaced_costs(self) -> list[tuple[str, Decimal]]:
        """``replaced``, parsed. An id may be there twice: the API may repeat it."""
        try:
            parsed = [(identity, Decimal(cost)) for identity, cost in self.replaced or ()]
        except (ArithmeticError, TypeError):
            raise ValueError("its replaced generations are invalid") from None
        if not all(type(identity) is str and cost.is_finite() and cost >= 0 for identity, cost in parsed):
            raise ValueError("its replaced generations are invalid")
        return parsed

    @property
    def replaced_cost(self) -> Decimal:
        """The costs of ``replaced`` together, in USD."""
        return sum((cost for _, cost in self.replaced_costs), Decimal(0))

    @property
    def unknown_requests(self) -> int:
        """How many requests were, or may have been, billed without a usable result."""
        return self.sent_before + (self.response is None)

    @property
    def is_owed(self) -> bool:
        """Whether it was paid for, or is being generated, and did not reach the task's XCom."""
        return self.state in ("completed", "pending") and not self.delivered

    def to_json(self) -> dict[str, Any]:
        """Return the entry as stored, as plain JSON."""
        return {name: part for name, part in asdict(self).items() if part is not None and part is not False}

    @property
    def age(self) -> str:
        """The time since the request was sent, as ``1:02:03``."""
        age = datetime.now(UTC) - datetime.fromisoformat(self.started_at)
        return str(age).partition(".")[0]


class EntryStore:
    """
    Keeps one request's entry. A failed read or write raises whatever the state raised.

    :param state: The task's state, or a batch's journal, which has the same methods.
    :param key: The entry's key in it.
    """

    def __init__(self, state: TaskState, key: str = KEY) -> None:
        #: The name of the store, as the start of a sentence.
        self.name = state.name
        self._state = state
        self._key = key
        # The value read last, and what it was parsed to: a journal always returns the same value.
        self._value: Any = None
        self._entry: Entry | None = None

    @property
    def address(self) -> str:
        """Where a user finds the entry."""
        return self._state.address(self._key)

    def read(self) -> Entry | None:
        """
        Return the last entry written, or None; from a journal, the last that earlier tries wrote.

        :raises ValueError: The value is not a valid entry.
        """
        value = self._state.get(self._key)
        if value is not self._value:
            self._entry = Entry.from_json(value)
            self._value = value
        return self._entry

    def write(self, value: dict[str, Any] | None) -> None:
        """Store a value, which is durable once this returns; None deletes the entry."""
        if value is None:
            self._state.delete(self._key)
        else:
            self._state.set(self._key, value)


class Ledger:
    """
    The ledger of one request of a task instance.

    :param context: The task's context.
    :param fingerprint: Digest of the request that this try is about to send.
    :param log: The task's log.
    :param store: Keeps the request's entry.
    """

    def __init__(self, context: Context, fingerprint: str, log: Logger, store: EntryStore) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._try = Try.of(context)
        #: The task's log.
        self.log = log
        self._before: Entry | None = None
        #: The request's recorded entry: an earlier try's, then this one's.
        self._entry: Entry | None = None
        self._sent_before = 0
        self._replaced: list[list[str]] | None = None
        #: Whether Airflow won't retry after this try.
        self.is_last_try = self._try.is_last

    def previous(self) -> Entry | None:
        """
        Return the entry that an earlier try recorded for this request; None if none applies.

        :raises LedgerError: The store or its content could not be read.
        """
        try:
            entry = self._before = self._store.read()
        except ValueError as error:
            raise LedgerError(
                f"What an earlier try did is unknown: {reason(error)}. This try sent nothing. Delete "
                f"{self._store.address} to continue; it may contain a paid response.",
                billed="unknown",
            ) from None
        except Exception as error:
            raise LedgerError(
                f"{self._store.name} could not be read: {reason(error)}.",
                # An earlier try may have paid.
                billed="no" if self._try.is_first else "unknown",
            ) from None
        if entry is None:
            return None
        is_owed = entry.is_owed and entry.fingerprint == self._fingerprint
        if entry.epoch != self._try.epoch and not is_owed:
            self.log.info(
                "The task was cleared since try %d: a new request is sent, and billed.", entry.try_number
            )
            return None
        if entry.fingerprint != self._fingerprint:
            self.log.warning(
                "The request has changed since try %d, sent at %s: sending the new request, which is billed.",
                entry.try_number,
                entry.started_at,
            )
            self._count_as_earlier(entry)
            return None
        self._count_as_earlier(entry)
        self._entry = entry
        return entry

    def _count_as_earlier(self, entry: Entry) -> None:
        """Keep the bill of an entry that the next request's entry would replace."""
        self._sent_before, self._replaced = entry.sent_before + 1, entry.replaced
        generation = entry.generation
        if generation is not None and generation.cost is not None:
            self._sent_before -= 1
            self._replaced = [*(entry.replaced or ()), [generation.id, str(generation.cost)]]

    @property
    def address(self) -> str:
        """Where a user finds the entry."""
        return self._store.address

    def is_before_clear(self, entry: Entry) -> bool:
        """Return whether a user has cleared the task since the entry was written."""
        return entry.epoch != self._try.epoch

    def record_intent(self) -> None:
        """
        Record that the request is about to be sent.

        :raises LedgerError: It could not be recorded; the request must not be sent.
        """
        entry = self._submitted()
        try:
            self._write(entry)
        except BaseException as error:
            self._undo_if_written(entry)
            if not isinstance(error, Exception):
                # Raised from a signal handler.
                raise
            raise LedgerError(f"{self._store.name} could not be written: {reason(error)}.") from None
        self._entry = entry

    def _undo_if_written(self, entry: Entry) -> None:
        """Undo a write that was reported as failed but was applied. Never replaces another process's entry."""
        with suppress(Exception):
            if self._store.read() == entry:
                self.rollback()

    def rollback(self) -> None:
        """Record that the last request was not billed: restore the entry from before it."""
        before = None if self._before is None else self._before.to_json()
        try:
            for attempt in _repeatedly():
                with attempt:
                    self._store.write(before)
        except Exception as error:
            # The next try will treat the outcome as unknown: it stops, and pays nothing twice.
            self.log.warning(
                "%s could not be written: %s. The next try will not know that nothing was billed.",
                self._store.name,
                reason(error),
            )

    def record_response(self, response: dict[str, Any]) -> None:
        """
        Record the response to the last request. Never raises: a paid response must reach the user.

        :param response: The API's response, as plain JSON.
        """
        self._keep(
            replace(self._last(), state="completed", response=response),
            "The paid response %s could not be recorded: %s. If this try fails, a retry can't reuse it.",
            response.get("id"),
        )

    def record_video(self, video_id: str) -> None:
        """
        Record the id of the submitted video: from now on it is polled, and not submitted again.

        Never raises: the task continues with the submitted video.
        """
        self._keep(
            replace(self._last(), state="pending", video_id=video_id),
            "The id of the submitted video, %s, could not be recorded: %s. If this try fails, a retry can't find it.",
            video_id,
        )

    def resume(self, video_id: str) -> Entry:
        """
        Return the entry of the video that this same try submitted before it was deferred. Never raises.

        :param video_id: The id that the task was deferred with: the recorded entry may be gone, and is not needed.
        """
        entry = None
        try:
            entry = self._store.read()
        except Exception as error:
            self.log.warning("%s could not be read: %s.", self._store.name, reason(error))
        if entry is None or entry.video_id != video_id:
            entry = replace(self._submitted(), state="pending", video_id=video_id)
        self._entry = entry
        return entry

    def record_failed(self, failure: str) -> None:
        """
        Record that the API could not generate the video. Never raises: the next try would find out again.

        :param failure: The reason, as a sentence.
        """
        try:
            # Use this epoch: even if the video was submitted before a Clear, it failed after it.
            self._write(replace(self._last(), state="failed", failure=failure, epoch=self._try.epoch))
        except Exception as error:
            self.log.warning("%s could not be written: %s.", self._store.name, reason(error))

    def delivered(self) -> None:
        """Record that the response was delivered to the user. Never raises."""
        entry = self._last()
        if entry.response is None or (entry.delivered and entry.epoch == self._try.epoch):
            return
        try:
            self._write(replace(entry, epoch=self._try.epoch, delivered=True))
        except Exception as error:
            # The next Clear will return this response again, at no cost.
            self.log.warning("%s could not be written: %s.", self._store.name, reason(error))

    def record_unknown(self, failure: str, received: str | None = None) -> None:
        """
        Add the reason for the unknown outcome to the last request's entry.

        :param failure: What was seen instead of a response, as a sentence.
        :param received: A response that could not be read: kept, because it may be paid for.
        """
        kept = received[:_RECEIVED_CHARACTERS] if received else None
        while kept and len(json.dumps(kept)) > 2 * _RECEIVED_CHARACTERS:
            # Escapes take up to six bytes per character.
            kept = kept[: len(kept) // 2]
        try:
            self._write(replace(self._last(), failure=failure, received=kept))
        except Exception as fault:
            self.log.warning("%s could not be written: %s.", self._store.name, reason(fault))

    @property
    def replaced_cost(self) -> Decimal:
        """What earlier generations cost that the last request replaced, in USD."""
        return self._last().replaced_cost

    @property
    def sent_at(self) -> str:
        """When the last request was sent."""
        return self._last().started_at

    def _last(self) -> Entry:
        if self._entry is None:
            raise RuntimeError("record_intent() must come first")
        return self._entry

    def _submitted(self) -> Entry:
        now = datetime.now(UTC).isoformat()
        return Entry(
            "submitted",
            self._fingerprint,
            self._try.epoch,
            self._try.number,
            now,
            sent_before=self._sent_before,
            replaced=self._replaced,
        )

    def _keep(self, entry: Entry, lost: str, identity: object) -> None:
        """Write an entry that must not be lost; log an error if it can't be written."""
        self._entry = entry
        try:
            for attempt in _repeatedly():
                with attempt:
                    self._write(entry)
        except Exception as error:
            self.log.error(lost, identity, reason(error))

    def _write(self, entry: Entry) -> None:
        self._store.write(entry.to_json())


def _repeatedly() -> Retrying:
    return Retrying(stop=stop_after_attempt(_WRITES), wait=wait_exponential(0.1, max=2), reraise=True)


def fingerprint(request: dict[str, Any]) -> str:
    """Return a digest of a request, given as plain JSON; the same on every machine."""
    body = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(body.encode()).hexdigest()
