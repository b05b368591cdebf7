# SPDX-License-Identifier: Apache-2.0
"""
Circuit breakers: pause or stop sending when one row's outcome says something about the others.

- A backlog of billed but unsaved images pauses sending; a small one is enough until saving is proven to work.
- Images that earlier tries paid for come first: a try that can save none of them sends nothing new.
- Consecutive unknown outcomes, consecutive images that could not be saved, and a permanent refusal by S3 stop sending. So do a
  refused key, an empty account, a base URL that has moved, a proxy that wants a password, and a state that can't be written.
- If the API refused one row's model or settings, other rows with the same ones are not sent.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import (
    AuthenticationError,
    ConnectionConfigError,
    FileGoneError,
    FileRefusedError,
    InsufficientBalanceError,
    KilledError,
    LedgerError,
    NetworkRefusedError,
    ObjectExistsError,
    OutcomeUnknownError,
    PaidFilesGoneError,
    RequestRefusedError,
    StoreRefusedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_getimg.api.errors import GetimgError
    from airflow_provider_getimg.batch.limiter import RateLimiter
    from airflow_provider_getimg.batch.report import RowResult
    from airflow_provider_getimg.batch.rows import Row
    from airflow_provider_getimg.batch.stop import Stop

#: Consecutive unknown outcomes, or unsaved images, that stop sending. A single permanent refusal by S3 does, too.
MAX_CONSECUTIVE_UNKNOWN = 5
MAX_CONSECUTIVE_UNSAVED = 5
#: Until the first image is saved, this many billed but unsaved images hold back further requests.
UNPROVEN_BACKLOG = 1
_LOOK_SECONDS = 0.25
# Parameters that the API may refuse in combination: its verdict is the same for every row with that combination.
_SETTINGS = ("model", "aspect_ratio", "resolution", "output_format")
# Errors of a request that every other one would meet, too.
_STOPPING_ERRORS = (AuthenticationError, InsufficientBalanceError, LedgerError)
# Statuses of another server than the API: the base URL has moved, or a proxy wants a password. Every request meets them, unless
# one has had a response.
_STOPPING_STATUSES = frozenset({301, 307, 308, 407})
# Errors of a save that every other one would meet now, too.
_PERMANENT_ERRORS = (StoreRefusedError, NetworkRefusedError, ConnectionConfigError)


class Breakers:
    """
    The breakers of a batch. Thread-safe.

    :param stop: Stops sending.
    :param limiter: Paused while too many billed images are unsaved.
    :param max_backlog: The most billed images that may wait to be saved.
    """

    def __init__(self, stop: Stop, limiter: RateLimiter, max_backlog: int) -> None:
        self._stop = stop
        self._limiter = limiter
        self._max_backlog = max_backlog
        self._lock = threading.Lock()
        self._backlog = 0
        self._has_saved = False
        self._has_response = False
        self._consecutive_unknown = 0
        self._consecutive_unsaved = 0
        # Keyed by model alone, and by all settings: everything but the prompt and the references.
        self._refused: dict[tuple[str | None, ...], GetimgError] = {}
        # Indexes of rows that earlier tries paid for but did not save.
        self._owed: set[int] = set()
        self._owed_error: GetimgError | None = None
        self._may_send = threading.Event()
        self._may_send.set()
        # Errors specific to one row's files: they say little about other rows' files.
        self._row_specific_errors: tuple[type[GetimgError], ...] = (FileGoneError, PaidFilesGoneError)

    def save_first(self, owed: Iterable[int], *, is_saving_proven: bool) -> None:
        """
        Hold back new requests until one of these rows is saved, or none of them is left.

        :param owed: Indexes of the rows that earlier tries paid for but did not save.
        :param is_saving_proven: Whether one refused file must not hold up the rest: saving is known to work, or a user has
            cleared the task since.
        """
        self._owed = set(owed)
        if is_saving_proven:
            self._row_specific_errors += (FileRefusedError, ObjectExistsError)
        if self._owed:
            self._may_send.clear()

    def wait_until_released(self) -> bool:
        """Wait until new requests are no longer held back; return False if sending has stopped."""
        # Poll: a signal handler sets the stop event without waking this thread.
        while not self._may_send.wait(_LOOK_SECONDS) and not self._stop.event.is_set():
            pass
        return not self._stop.event.is_set()

    def on_resend(self, row: Row) -> bool:
        """Record that a row has no file to save and will be sent. Return whether it must wait for other owed rows."""
        with self._lock:
            was_owed = row.index in self._owed
            self._note_owed(row, None)
            return was_owed and not self._may_send.is_set()

    def on_row_result(self, result: RowResult) -> None:
        """Record the result of a row."""
        with self._lock:
            self._note_owed(result.row, result)

    def _note_owed(self, row: Row, result: RowResult | None) -> None:
        if row.index not in self._owed:
            return
        self._owed.remove(row.index)
        error = result.error if result is not None else None
        if error is not None and not isinstance(error, self._row_specific_errors):
            self._owed_error = error
        if result is not None and result.is_saved:
            self._may_send.set()
        elif not self._owed and not self._may_send.is_set():
            if self._owed_error is not None:
                self._stop.set(self._owed_error)
            self._may_send.set()

    def check_refused(self, row: Row) -> None:
        """
        Refuse a row that the API would refuse as it refused another: hundreds might be sent for nothing.

        :raises RequestRefusedError: The API would refuse it.
        """
        for what, kind in (("model", _model(row)), ("settings", _settings(row))):
            with self._lock:
                refusal = self._refused.get(kind)
            if refusal is not None:
                these = "this model" if what == "model" else "these settings"
                raise RequestRefusedError(
                    f"The request was not sent: another row with {these} was refused. {refusal.message}"
                )

    def on_error(self, row: Row, error: GetimgError) -> None:
        """Record the error of a row's request, if it applies to other rows. Call it before the row's slot is released."""
        if isinstance(error, OutcomeUnknownError):
            self._on_unknown(error)
        elif isinstance(error, _STOPPING_ERRORS) or (
            error.status in _STOPPING_STATUSES and not self._has_response
        ):
            self._stop.set(error)
        with self._lock:
            if _is_model_refusal(error):
                self._refused[_model(row)] = error
            elif error.status == 400 and error.param in _SETTINGS:
                self._refused[_settings(row)] = error

    def _on_unknown(self, error: GetimgError) -> None:
        with self._lock:
            self._consecutive_unknown += 1
            too_many = self._consecutive_unknown == MAX_CONSECUTIVE_UNKNOWN
        if too_many and not self._stop.event.is_set():
            self._stop.set(
                UnavailableError(
                    f"{MAX_CONSECUTIVE_UNKNOWN} consecutive requests ended without a response, and each may have been billed. The last: "
                    f"{error.message}",
                    billed="unknown",
                )
            )

    def on_billed(self) -> None:
        """Record an image that is billed but not saved yet."""
        with self._lock:
            self._backlog += 1
            self._update_pause()

    def on_response(self) -> None:
        """Record a completed request."""
        with self._lock:
            self._has_response = True
            self._consecutive_unknown = 0

    def on_saved(self) -> None:
        """Record that a billed image is now saved."""
        with self._lock:
            self._consecutive_unsaved = 0
            self._has_saved = True
            self._backlog -= 1
            self._update_pause()

    def on_unsaved(self, error: GetimgError | None) -> None:
        """Record a billed image that could not be saved; ``error`` is None for a bug in the provider."""
        with self._lock:
            if error is not None and not isinstance(error, KilledError):
                self._consecutive_unsaved += 1
                if self._consecutive_unsaved == MAX_CONSECUTIVE_UNSAVED or isinstance(
                    error, _PERMANENT_ERRORS
                ):
                    # Before the limiter lets the next request through.
                    self._stop.set(error)
            self._backlog -= 1
            self._update_pause()

    def _update_pause(self) -> None:
        most = self._max_backlog if self._has_saved else UNPROVEN_BACKLOG
        self._limiter.set_paused(self._backlog >= most)


def _model(row: Row) -> tuple[str | None, ...]:
    return (row.request.checked.model,)


def _settings(row: Row) -> tuple[str | None, ...]:
    return tuple(getattr(row.request.checked, name) for name in _SETTINGS)


def _is_model_refusal(error: GetimgError) -> bool:
    """Return whether a refusal, however worded, concerns the model itself, and so every row that uses it."""
    if not isinstance(error, RequestRefusedError) or error.status not in (400, 403, 404):
        return False
    # 404: only the model can be missing.
    return error.param == "model" or "model" in (error.code or "").lower() or error.status == 404
