# SPDX-License-Identifier: Apache-2.0
"""One try of a batch: the checks before anything is sent, the order of the rows, and their results."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import GetimgError
from airflow_provider_getimg.api.references import check_references, exceeds_documented_references
from airflow_provider_getimg.batch.breakers import Breakers
from airflow_provider_getimg.batch.existing import Existing
from airflow_provider_getimg.batch.pipeline import Pipeline
from airflow_provider_getimg.batch.progress import Progress
from airflow_provider_getimg.batch.report import BatchResults
from airflow_provider_getimg.batch.row_steps import RowSteps

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_provider_getimg.api.requests import ImageRequest
    from airflow_provider_getimg.api.types import Generation
    from airflow_provider_getimg.batch.history import History
    from airflow_provider_getimg.batch.row_steps import ApiAccess
    from airflow_provider_getimg.batch.rows import Row
    from airflow_provider_getimg.batch.settings import BatchSettings
    from airflow_provider_getimg.s3.copier import Copier

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
    :param copier: Saves files.
    :param history: What earlier tries did.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        settings: BatchSettings,
        api: ApiAccess,
        copier: Copier,
        history: History,
    ) -> None:
        self._rows = rows
        self._settings = settings
        self._api = api
        self._history = history
        # Room for all slots' images at once, on top of those that the uploaders are working on.
        max_backlog = 2 * (settings.senders + settings.uploaders)
        self._breakers = Breakers(api.stop, api.limiter, max_backlog)
        self._existing = Existing(copier.store, settings.if_exists, history.log)
        steps = RowSteps(settings, api, copier, self._existing, history, self._breakers)
        self._pipeline = Pipeline(steps, settings, api, copier, history.log)
        # Rows that earlier tries sent, and rows to send: filled by `check`.
        self._paid: list[Row] = []
        self._to_send: list[Row] = []

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

    def check(self) -> None:
        """
        Check what can be checked before anything is sent, and look up which objects exist. Comes before :meth:`run`.

        :raises CostLimitError: Together, the rows exceed the budget.
        """
        self._sort()
        self._check_requests()
        self._existing.list_keys(self._to_send)

    def run(self) -> BatchResults:
        """Generate and save all rows."""
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

        self._pipeline.run([*self._paid, *self._to_send], tick)
        return self.results

    def _sort(self) -> None:
        """Order the rows: those that earlier tries sent, by the expiry of their URLs, before those to send."""
        sent: list[tuple[datetime, Row]] = []
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
                self._to_send.append(row)
        # A Clear since then means that the user wants to go on.
        self._breakers.save_first(owed, is_saving_proven=has_saved or not is_owed_now)
        self._paid = [row for _, row in sorted(sent, key=lambda entry: entry[0])]

    def _check_requests(self) -> None:
        """
        Check the budget, and what only the catalogue can verify about the requests.

        :raises GetimgError: A check failed, and there is nothing from earlier tries to save or report.
        """
        budget = self._api.budget
        try:
            self._history.add_to_budget(budget)
            self._check_references(row.request.checked for row in self._to_send)
            budget.check(row.request.checked for row in self._to_send)
        except GetimgError as error:
            if not (self._paid or budget.billed or budget.unknown_outcomes):
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
