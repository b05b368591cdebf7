# SPDX-License-Identifier: Apache-2.0
"""One try of a batch: what is checked before anything is sent, in which order rows go, and what became of them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import GetimgError
from airflow_provider_getimg.api.references import check_references, references_beyond_documented
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

# Rows that are not sent because their response was lost come after those with files that expire.
_LAST = datetime.max.replace(tzinfo=UTC)
# Files with an unknown expiry may expire soon.
_FIRST = datetime.min.replace(tzinfo=UTC)


class BatchRun:
    """
    One try of a batch.

    :param rows: What to generate.
    :param settings: What holds for all of them.
    :param api: Takes the requests.
    :param storage: Takes the files.
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
        # Enough for all slots' images at once, on top of what the uploaders have in hand.
        max_backlog = 2 * (settings.senders + settings.uploaders)
        self._breakers = Breakers(api.stop, api.limiter, max_backlog)
        steps = RowSteps(settings, api, storage, history, self._breakers)
        self._pipeline = Pipeline(steps, settings, api.stop, history.log)
        #: Why S3 takes no write, if so: no request was sent.
        self.store_error: GetimgError | None = None

    @property
    def results(self) -> BatchResults:
        """What became of the rows, so far."""
        budget = self._api.budget
        return BatchResults(
            [self._pipeline.result(row) or self._history.result(row) for row in self._rows],
            self._api.stop.reason,
            budget.billed,
            budget.unknown_outcomes,
        )

    def run(self, check_store: Callable[[BatchResults], None]) -> BatchResults:
        """
        Generate all rows, and save them.

        :param check_store: Called with what is known beforehand: where it raises a ``GetimgError``, nothing is sent.
        :raises CostLimitError: All together are over the budget. Nothing was sent.
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
        """Return the rows that earlier tries sent, by the expiry of their URLs, and those that are to be sent."""
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
                is_owed_now = is_owed_now or self._history.is_of_this_epoch(entry)
            elif entry is not None and self._settings.on_unknown_outcome == "fail":
                sent.append((_LAST, row))
            else:
                to_send.append(row)
        # A Clear since then is a user's wish to go on.
        self._breakers.save_first(owed, is_saving_proven=has_saved or not is_owed_now)
        return [row for _, row in sorted(sent, key=lambda entry: entry[0])], to_send

    def _check(self, paid: Sequence[Row], to_send: Sequence[Row]) -> None:
        """
        Check the budget, and what only the catalogue knows of the requests.

        :raises GetimgError: A check failed, and there is nothing of earlier tries to save or to report.
        """
        budget = self._api.budget
        try:
            self._history.count(budget)
            self._check_references(row.request.checked for row in to_send)
            budget.check(row.request.checked for row in to_send)
        except GetimgError as error:
            if not (paid or budget.billed or budget.unknown_outcomes):
                raise
            # Billed images are saved all the same, and the bill is reported.
            self._api.stop.set(error)

    def _check_references(self, requests: Iterable[ImageRequest]) -> None:
        """Let the catalogue say whether a model takes more references than are documented."""
        get_model = cache(self._api.client.get_model)
        for request in requests:
            if references_beyond_documented(request):
                check_references(get_model(request.model), request)


def _expiry(generation: Generation) -> datetime:
    return min(file.deletes_at or _FIRST for file in generation.data)
