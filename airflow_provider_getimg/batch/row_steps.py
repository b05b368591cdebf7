# SPDX-License-Identifier: Apache-2.0
"""
The two steps of a row: send its request, paying only once, and save its images.

A limiter slot is held from the intent in the ledger until the response, and no longer.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import (
    CostLimitError,
    FileGoneError,
    FileRefusedError,
    GetimgError,
    KilledError,
    NoConnectionError,
    ObjectExistsError,
    OutcomeUnknownError,
    PaidFilesGoneError,
    RateLimitError,
)
from airflow_provider_getimg.batch.pipeline import SendLater
from airflow_provider_getimg.batch.report import RowResult, without_traceback
from airflow_provider_getimg.durable.paid_image import PaidImage
from airflow_provider_getimg.s3.download import is_past_deletion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from airflow_provider_getimg.api.client import GetimgClient
    from airflow_provider_getimg.api.types import Generation
    from airflow_provider_getimg.batch.breakers import Breakers
    from airflow_provider_getimg.batch.budget import Budget
    from airflow_provider_getimg.batch.existing import Existing
    from airflow_provider_getimg.batch.history import History
    from airflow_provider_getimg.batch.in_flight import Slot
    from airflow_provider_getimg.batch.limiter import RateLimiter
    from airflow_provider_getimg.batch.rows import Row
    from airflow_provider_getimg.batch.settings import BatchSettings
    from airflow_provider_getimg.batch.stop import Stop
    from airflow_provider_getimg.s3.copier import Copier, SavedFile

#: How many times a request is attempted within a try if connections fail.
CONNECTION_ATTEMPTS = 5


@dataclass(frozen=True)
class ApiAccess:
    """
    The getimg.ai side of a batch.

    :param client: Sends the requests.
    :param limiter: Decides when the next may be sent.
    :param budget: Limits what they may cost.
    :param stop: Stops sending.
    """

    client: GetimgClient
    limiter: RateLimiter
    budget: Budget
    stop: Stop


class RowSteps:
    """
    The steps of a row, which may run in any thread.

    :param settings: The settings that apply to all rows.
    :param api: Where requests are sent.
    :param copier: Saves files.
    :param existing: The objects already at the rows' keys.
    :param history: What earlier tries did.
    :param breakers: Decide what a row's outcome means for the others.
    """

    def __init__(
        self,
        settings: BatchSettings,
        api: ApiAccess,
        copier: Copier,
        existing: Existing,
        history: History,
        breakers: Breakers,
    ) -> None:
        self._settings = settings
        self._api = api
        self._copier = copier
        self._existing = existing
        self._history = history
        self._breakers = breakers

    def send(self, row: Row) -> RowResult | Callable[[], RowResult] | SendLater:
        """Return the row's result if there is nothing to save; otherwise a callable that saves its images, or a ``SendLater``."""
        state = self._history.state(row)
        if state.result is not None and state.is_saved:
            return state.result
        if (existing := self._found_saved(row)) is not None:
            return existing
        paid = self._paid_image(row)
        try:
            generation = paid.recorded()
        except (OutcomeUnknownError, PaidFilesGoneError):
            # A try that was presumed dead may have saved files that it could no longer record.
            existing = None
            with suppress(GetimgError):
                existing = self._existing.find(row, refresh=True)
            if existing is None:
                raise
            return existing
        if generation is not None:
            self._breakers.on_billed()
            return partial(self.save, row, generation, is_new=False)
        if self._breakers.on_resend(row):
            # Waiting here for the other owed rows would take the thread that they need.
            return SendLater(partial(self._send_new, row, paid))
        return self._send_new(row, paid)

    def _send_new(self, row: Row, paid: PaidImage) -> RowResult | Callable[[], RowResult]:
        """Send a row that has no known response; return the same as :meth:`send`."""
        if not self._breakers.wait_until_released():
            return replace(self._history.result(row), outcome="not_sent")
        self._breakers.check_refused(row)
        # An earlier try's object may exist without a note; the listing covers only the other rows.
        existing = self._existing.find(row, refresh=self._history.state(row).entry is not None)
        if existing is not None:
            return existing
        self._history.forget_saved(row)
        try:
            generation = self._generate(paid, row)
        except KilledError:
            return replace(self._history.result(row), outcome="not_sent")
        self._history.mark_paid(row, generation)
        return partial(self.save, row, generation, is_new=True)

    def save(self, row: Row, generation: Generation, *, is_new: bool) -> RowResult:
        """
        Save a row's images and record where.

        :param is_new: Whether this try generated them.
        """
        unsaved: GetimgError | None = None
        files: list[SavedFile] | None = None
        try:
            files = self._saved(row, generation, is_new)
        except GetimgError as error:
            elsewhere = () if is_new else self._elsewhere(row)
            if elsewhere and isinstance(error, FileGoneError | ObjectExistsError):
                # Its key has changed, and it can't be saved at the new one.
                self._history.log.warning(
                    "%s stays where an earlier try saved it: %s.", row.name, elsewhere[0].item.uri
                )
                files = list(elsewhere)
                return RowResult.of(row, "reused", generation, files)
            if isinstance(error, FileGoneError):
                self._history.note_gone(row)
            unsaved = without_traceback(error)
            return RowResult.of(row, "failed", generation, error=unsaved)
        finally:
            if files is not None:
                self._breakers.on_saved()
            else:
                self._breakers.on_unsaved(unsaved)
        return RowResult.of(row, "saved" if is_new else "reused", generation, files)

    def failed(self, row: Row, error: GetimgError) -> RowResult:
        """Return the result of a row after one of its steps raised an error."""
        # An earlier try may have paid for it.
        return replace(self._history.result(row), outcome="failed", error=error)

    def on_row_result(self, result: RowResult) -> None:
        """Record the result of a row."""
        self._breakers.on_row_result(result)

    def _paid_image(self, row: Row) -> PaidImage:
        return PaidImage(
            self._history.ledger(row),
            on_unknown_outcome=self._settings.on_unknown_outcome,
            killed=self._api.stop.event,
            all_gone=self._copier.downloads.all_gone,
        )

    @contextmanager
    def _slot(self, row: Row) -> Iterator[Slot]:
        """Wait for a slot. The breakers learn the outcome before the slot is released."""
        with self._api.limiter.acquire() as slot:
            self._breakers.check_refused(row)
            try:
                yield slot
            except GetimgError as error:
                self._breakers.on_error(row, error)
                raise
            # The request got a response, so it was billed.
            self._breakers.on_billed()

    def _generate(self, paid: PaidImage, row: Row) -> Generation:
        """Send the row's request, and resend it each time a rate limit refuses it."""
        client, limiter, budget, stop = self._api.client, self._api.limiter, self._api.budget, self._api.stop
        request = row.request.resolve(lambda: self._copier.store.client)
        price = budget.price(row.request.checked)
        try:
            budget.reserve(price)
        except CostLimitError as error:
            stop.set(error)
            raise KilledError(error.message) from None
        unreachable = 0
        while True:
            try:
                with self._slot(row) as slot, paid.sending():
                    generation = limiter.send(slot, partial(client.generate_image, request))
                paid.record(generation, request.model)
            except RateLimitError as error:
                if (
                    error.retry_after or 0
                ) > self._settings.rate_limit_wait and not self._history.is_last_try:
                    budget.release(price)
                    stop.set(error)
                    raise KilledError(error.message) from None
            except NoConnectionError as error:
                unreachable += 1
                if unreachable == CONNECTION_ATTEMPTS:
                    budget.release(price)
                    # If five attempts over some time failed, the other rows' will, too.
                    stop.set(error)
                    raise
            except OutcomeUnknownError:
                budget.mark_unknown()
                raise
            except GetimgError:
                budget.release(price)
                raise
            else:
                budget.commit(price, generation.cost)
                self._breakers.on_response()
                return generation

    def _found_saved(self, row: Row) -> RowResult | None:
        """
        Return the result of a row whose URLs may have expired, if an earlier try saved its files without a note or at other keys.

        :raises GetimgError: S3 could not be reached.
        """
        entry = self._history.state(row).entry
        if entry is None or entry.generation is None or not is_past_deletion(entry.generation):
            return None
        files = self._elsewhere(row) or self._copier.find(row.items(entry.generation))
        if not files:
            return None
        self._history.log.info(
            "%s was saved by an earlier try: %s. Nothing is sent.", row.name, files[0].item.uri
        )
        return RowResult.of(row, "reused", entry.generation, files)

    def _elsewhere(self, row: Row) -> Sequence[SavedFile]:
        """Return a row's files at its previous keys; empty if another row may overwrite them."""
        return () if self._settings.if_exists == "replace" else self._history.state(row).elsewhere

    def _saved(self, row: Row, generation: Generation, is_new: bool) -> list[SavedFile]:
        """Save the files of a generation and record that they are saved."""
        files: list[SavedFile] = []
        failures: list[GetimgError] = []
        for item in row.items(generation):
            try:
                files.append(self._copier.save(item, key_is_free=is_new and item.key == row.expected_key))
            except GetimgError as error:
                # One failure is no reason to lose the others.
                failures.append(error)
        if failures:
            # Prefer one that a retry may fix.
            raise min(failures, key=lambda error: isinstance(error, FileGoneError | FileRefusedError))
        self._history.note_saved(row, files)
        return files
