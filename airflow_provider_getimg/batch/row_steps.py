# SPDX-License-Identifier: Apache-2.0
"""
The two steps of a row: send its request, paid once, and save its images.

A slot of the limiter is held from the intent in the ledger to the response, and no longer.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import (
    AuthenticationError,
    CostLimitError,
    FileGoneError,
    FileRefusedError,
    GetimgError,
    InsufficientBalanceError,
    KilledError,
    LedgerError,
    NoConnectionError,
    ObjectExistsError,
    OutcomeUnknownError,
    PaidFilesGoneError,
    RateLimitError,
)
from airflow_provider_getimg.batch.limiter import RateLimitedClient
from airflow_provider_getimg.batch.pipeline import Later
from airflow_provider_getimg.batch.report import RowResult, without_traceback
from airflow_provider_getimg.durable.paid_generation import PaidGeneration
from airflow_provider_getimg.s3.download import is_past_deletion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.api.client import GetimgClient
    from airflow_provider_getimg.api.types import Generation
    from airflow_provider_getimg.batch.breakers import Breakers
    from airflow_provider_getimg.batch.budget import Budget
    from airflow_provider_getimg.batch.existing import Existing
    from airflow_provider_getimg.batch.history import History
    from airflow_provider_getimg.batch.limiter import RateLimiter
    from airflow_provider_getimg.batch.rows import Row
    from airflow_provider_getimg.batch.settings import BatchSettings
    from airflow_provider_getimg.batch.stop import Stop
    from airflow_provider_getimg.s3.copier import Copier, SavedFile

#: How often a request that gets no connection is sent within a try.
CONNECTION_ATTEMPTS = 5


@dataclass(frozen=True)
class ApiAccess:
    """
    The getimg.ai side of a batch.

    :param client: Sends the requests.
    :param limiter: When the next may be sent.
    :param budget: What they may cost.
    :param stop: Whether any more are sent.
    """

    client: GetimgClient
    limiter: RateLimiter
    budget: Budget
    stop: Stop


@dataclass(frozen=True)
class Storage:
    """
    The S3 side of a batch.

    :param s3_client: Makes a client, which reads reference images.
    :param existing: What is at the rows' keys.
    :param copier: Saves files.
    :param abort: Ends the copies in flight.
    """

    s3_client: Callable[[], S3Client]
    existing: Existing
    copier: Copier
    abort: Callable[[], object]


class RowSteps:
    """
    What is done with a row, in any thread.

    :param settings: What holds for all rows.
    :param api: Takes the requests.
    :param storage: Takes the files.
    :param history: What earlier tries did.
    :param breakers: What a row's outcome means for the others.
    """

    def __init__(
        self,
        settings: BatchSettings,
        api: ApiAccess,
        storage: Storage,
        history: History,
        breakers: Breakers,
    ) -> None:
        self._settings = settings
        self._api = api
        self._client = RateLimitedClient(api.client, api.limiter)
        self._storage = storage
        self._history = history
        self._breakers = breakers

    def send(self, row: Row) -> RowResult | Callable[[], RowResult] | Later:
        """Return the row's result where there is nothing to save; otherwise what saves its images, or what sends it later."""
        state = self._history.state(row)
        if state.result is not None and state.is_saved:
            return state.result
        if (existing := self._found_saved(row)) is not None:
            return existing
        paid = self._paid_generation(row)
        try:
            generation = paid.recorded()
        except (OutcomeUnknownError, PaidFilesGoneError):
            # A try that was given up for dead may have saved what it could no longer record.
            existing = None
            with suppress(GetimgError):
                existing = self._storage.existing.find(row, refresh=True)
            if existing is None:
                raise
            return existing
        if generation is not None:
            self._breakers.on_billed()
            return partial(self.save, row, generation, is_new=False)
        if self._breakers.on_resend(row):
            # A thread that waited for the others that are owed would keep them from their turn.
            return Later(partial(self._send_new, row, paid))
        return self._send_new(row, paid)

    def _send_new(self, row: Row, paid: PaidGeneration) -> RowResult | Callable[[], RowResult]:
        """Send a row that no response is known of; return as :meth:`send` does."""
        if not self._breakers.wait_until_open():
            return replace(self._history.result(row), outcome="not_sent")
        self._breakers.check_refused(row)
        # What an earlier try sent may be there without a note; the listing is of the others.
        existing = self._storage.existing.find(row, refresh=self._history.state(row).entry is not None)
        if existing is not None:
            return existing
        self._history.forget_saved(row)
        try:
            generation = self._generate(paid, row)
        except KilledError:
            return replace(self._history.result(row), outcome="not_sent")
        return partial(self.save, row, generation, is_new=True)

    def save(self, row: Row, generation: Generation, *, is_new: bool) -> RowResult:
        """
        Save a row's images, and note where.

        :param is_new: Whether this try generated them.
        """
        unsaved: GetimgError | None = None
        files: list[SavedFile] | None = None
        try:
            files = self._saved(row, generation, is_new)
        except GetimgError as error:
            elsewhere = () if is_new else self._elsewhere(row)
            if elsewhere and isinstance(error, FileGoneError | ObjectExistsError):
                # It has another key now, and can't be saved there.
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
        """Return the result of a row one of whose steps raised an error."""
        # An earlier try may have paid for it.
        return replace(self._history.result(row), outcome="failed", error=error)

    def on_row_result(self, result: RowResult) -> None:
        """Note the result of a row."""
        self._breakers.on_row_result(result)

    @property
    def in_flight(self) -> int:
        """How many requests are in flight."""
        return self._api.client.in_flight

    def abort_requests(self) -> int:
        """End the requests in flight, and return how many there were."""
        return self._api.client.abort()

    def abort_uploads(self) -> None:
        """End the copies in flight."""
        self._storage.abort()

    def _paid_generation(self, row: Row) -> PaidGeneration:
        return PaidGeneration(
            self._history.ledger(row),
            on_unknown_outcome=self._settings.on_unknown_outcome,
            killed=self._api.stop.event,
            all_gone=self._storage.copier.downloads.all_gone,
        )

    @contextmanager
    def _slot(self, row: Row) -> Iterator[None]:
        """Wait for a slot. What a response means for the other rows is noted before the slot is another's."""
        with self._api.limiter.acquire():
            self._breakers.check_refused(row)
            try:
                yield
            except GetimgError as error:
                self._breakers.on_refused(row, error)
                raise
            # There is a response, so it was billed.
            self._breakers.on_billed()

    def _generate(self, paid: PaidGeneration, row: Row) -> Generation:
        """Send the row's request, however often rate limits send it back."""
        budget, stop = self._api.budget, self._api.stop
        request = row.request.resolve(self._storage.s3_client)
        price = budget.price(row.request.checked)
        try:
            budget.reserve(price)
        except CostLimitError as error:
            stop.set(error)
            raise KilledError(error.message) from None
        unreachable = 0
        while True:
            try:
                generation = paid.generate(self._client, request, slot=partial(self._slot, row))
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
                    # What five attempts over some time did not reach, the other rows won't.
                    stop.set(error)
                    raise
            except OutcomeUnknownError as error:
                budget.mark_unknown()
                self._breakers.on_unknown(error)
                raise
            except GetimgError as error:
                budget.release(price)
                if isinstance(error, AuthenticationError | InsufficientBalanceError | LedgerError):
                    stop.set(error)
                raise
            else:
                budget.commit(price, generation.cost)
                self._breakers.on_response()
                return generation

    def _found_saved(self, row: Row) -> RowResult | None:
        """
        Return the result of a row whose URLs may be dead and whose files an earlier try saved, though its note is lost or names other keys.

        :raises GetimgError: S3 could not be asked.
        """
        entry = self._history.state(row).entry
        if entry is None or entry.generation is None or not is_past_deletion(entry.generation):
            return None
        files = self._elsewhere(row) or self._storage.copier.find(row.items(entry.generation))
        if not files:
            return None
        self._history.log.info(
            "%s was saved by an earlier try: %s. Nothing is sent.", row.name, files[0].item.uri
        )
        return RowResult.of(row, "reused", entry.generation, files)

    def _elsewhere(self, row: Row) -> Sequence[SavedFile]:
        """Return a row's files at the keys that it had before; none where another row may write over them."""
        return () if self._settings.if_exists == "replace" else self._history.state(row).elsewhere

    def _saved(self, row: Row, generation: Generation, is_new: bool) -> list[SavedFile]:
        """Save the files of a generation, and note that they are saved."""
        files: list[SavedFile] = []
        failures: list[GetimgError] = []
        for item in row.items(generation):
            try:
                files.append(self._storage.copier.save(item, is_new=is_new and item.key == row.expected_key))
            except GetimgError as error:
                # It is no reason to lose the others.
                failures.append(error)
        if failures:
            # The one that a retry may help, if any.
            raise min(failures, key=lambda error: isinstance(error, FileGoneError | FileRefusedError))
        self._history.note_saved(row, files)
        return files
