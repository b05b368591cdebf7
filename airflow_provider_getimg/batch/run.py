# SPDX-License-Identifier: Apache-2.0
"""One try of a batch: the checks before anything is sent, the order of the rows, and their results."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import GetimgError
from airflow_provider_getimg.api.references import check_references, exceeds_documented_references
from airflow_provider_getimg.batch.breakers import Breakers
from airflow_provider_getimg.batch.pipeline import Pipeline
from airflow_provider_getimg.batch.progress import Progress
from airflow_provider_getimg.batch.report import BatchResults
from airflow_provider_getimg.batch.row_steps import RowSteps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from airflow_provider_getimg.api.requests import ImageRequest
    from airflow_provider_getimg.api.types import Generation
    from airflow_provider_getimg.batch.history import History
    from airflow_provider_getimg.batch.row_steps import ApiAccess, Storage
    from airflow_provider_getimg.batch.rows import Row
    from airflow_provider_getimg.batch.settings import BatchSettings

# Rows that are not sent because their response was lost come after rows whose files expire.
_LAST = datetime.max.replace(tzinfo=UTC)
# Files with an unknown expiry may expire soon.
_FIRST = datetime.min.replace(tzinfo=UTC)


class BatchRun:
    """
    One try of a batch.

    :param rows: What to generate.
    :param settings: The settings that apply to all of them.
    :param api: Where requests are sent.
    :param storage: Where files are saved.
    :param history: What earlier tries did.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        settings: BatchSettings,
        api: ApiAccess,
        storage: Storage,
        history: History,
    ) -> None:
        self._rows = rows
        self._settings = settings
        self._api = api
        self._storage = storage
        self._history = history
        # Room for all slots' images at once, on top of those that the uploaders are working on.
        max_backlog = 2 * (settings.senders + settings.uploaders)
        self._breakers = Breakers(api.stop, api.limiter, max_backlog)
        steps = RowSteps(settings, api, storage, history, self._breakers)
        self._pipeline = Pipeline(steps, settings, api.stop, history.log)
        #: Why S3 refuses writes, if it does: no request was sent.
        self.store_error: GetimgError | None = None

    @property
    def results(self) -> BatchResults:
        """The results of the rows so far."""
        budget = self._api.budget
        return BatchResults(
            [self._pipeline.result(row) or self._history.result(row) for row in self._rows],
            self._api.stop.reason,
            budget.billed,
            budget.unknown_outcomes,
        )

    def run(self, check_store: Callable[[BatchResults], None]) -> BatchResults:
        """
        Generate and save all rows.

        :param check_store: Called with the results known beforehand; if it raises a ``GetimgError``, nothing is sent.
        :raises CostLimitError: Together, the rows exceed the budget. Nothing was sent.
        """
        paid, to_send = self._sorted()
        self._check(paid, to_send)
        self._storage.existing.list(to_send)
        try:
            self._storage.copier.downloads.check_before_payment()
            check_store(self.results)
        except GetimgError as error:
            self.store_error = error
            self._api.stop.set(error)
            return self.results
        progress = Progress(len(self._rows), self._history.log)
        limiter, budget = self._api.limiter, self._api.budget

        def tick(done: int, failed: int) -> None:
            progress.report(
                done,
                failed,
                limiter.in_flight,
                budget.billed,
                limit=limiter.limit,
                waiting_for=limiter.waiting_for,
            )

        self._pipeline.run([*paid, *to_send], tick)
        return self.results

    def _sorted(self) -> tuple[list[Row], list[Row]]:
        """Return the rows that earlier tries sent, ordered by the expiry of their URLs, and the rows to send."""
        sent: list[tuple[datetime, Row]] = []
        to_send = []
        owed = set()
        has_saved = is_owed_now = False
        for row in self._rows:
            state = self._history.state(row)
            entry = state.entry
            if entry is not None and entry.generation is not None:
                sent.append((_expiry(entry.generation), row))
                if state.is_saved:
                    has_saved = True
                    continue
                owed.add(row.index)
                is_owed_now = is_owed_now or self._history.is_current_epoch(entry)
            elif entry is not None and self._settings.on_unknown_outcome == "fail":
                sent.append((_LAST, row))
            else:
                to_send.append(row)
        # A Clear since then means that the user wants to go on.
        self._breakers.save_first(owed, is_saving_proven=has_saved or not is_owed_now)
        return [row for _, row in sorted(sent, key=lambda entry: entry[0])], to_send

    def _check(self, paid: Sequence[Row], to_send: Sequence[Row]) -> None:
        """
        Check the budget, and what only the catalogue can verify about the requests.

        :raises GetimgError: A check failed, and there is nothing from earlier tries to save or report.
        """
        budget = self._api.budget
        try:
            self._history.add_to_budget(budget)
            self._check_references(row.request.checked for row in to_send)
            budget.check(row.request.checked for row in to_send)
        except GetimgError as error:
            if not (paid or budget.billed or budget.unknown_outcomes):
                raise
            # Still save the billed images, and report the bill.
            self._api.stop.set(error)

    def _check_references(self, requests: Iterable[ImageRequest]) -> None:
        """Check with the catalogue where a request has more references than documented."""
        get_model = cache(self._api.client.get_model)
        for request in requests:
            if exceeds_documented_references(request):
                check_references(get_model(request.model), request)


def _expiry(generation: Generation) -> datetime:
    return min(file.deletes_at or _FIRST for file in generation.data)
