# SPDX-License-Identifier: Apache-2.0
"""
What earlier tries sent, paid for and saved.

A row's entry in the journal says whether its request was sent, and holds the response; the note next to it says where the
files were saved. If the try that saved them could no longer write that note, the object itself is the evidence
(:mod:`~airflow_provider_getimg.batch.existing`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_getimg.batch.report import BatchResults, RowResult
from airflow_provider_getimg.durable.journal import saved_key
from airflow_provider_getimg.durable.ledger import Entry, EntryStore, Ledger
from airflow_provider_getimg.durable.tries import Try
from airflow_provider_getimg.s3.copier import SavedFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.types import Logger

    from airflow_provider_getimg.api.errors import GetimgError
    from airflow_provider_getimg.api.types import Generation
    from airflow_provider_getimg.batch.budget import Budget
    from airflow_provider_getimg.batch.rows import Row
    from airflow_provider_getimg.durable.journal import Journal
    from airflow_provider_getimg.s3.plan import TransferItem

# How many generations a warning names.
_IDS_SHOWN = 5
# The note for a row whose files the server reported as gone.
_GONE = "gone"


@dataclass(frozen=True, slots=True)
class RowState:
    """
    What earlier tries recorded for a row.

    :param entry: Its entry in the journal; None if there is none, or if it can't be read, which the row's ledger reports.
    :param result: Its result, if it was paid for: ``reused`` if its files are at their keys in S3, whether or not their URLs
        still work, and ``failed`` otherwise.
    :param elsewhere: Its files, if an earlier try saved them at keys other than their current ones.
    """

    entry: Entry | None = None
    result: RowResult | None = None
    elsewhere: Sequence[SavedFile] = ()

    @property
    def is_saved(self) -> bool:
        """Whether an earlier try saved its files."""
        return self.result is not None and self.result.is_saved


_NOTHING = RowState()


class History:
    """
    The state of the rows before this try, and what it paid for and has not finished. Thread-safe.

    :param rows: The rows. What earlier tries wrote about them is read once, here.
    :param context: The task's context.
    :param journal: The open journal, with what earlier tries wrote.
    :param log: The task's log.
    """

    def __init__(self, rows: Sequence[Row], context: Context, journal: Journal, log: Logger) -> None:
        self._rows = rows
        self._context = context
        self._journal = journal
        #: The task's log.
        self.log = log
        self._try = Try.of(context)
        #: Whether Airflow won't retry after this try.
        self.is_last_try = self._try.is_last
        self._stores = {row.index: EntryStore(journal, row.id) for row in rows}
        self._states = {row.index: self._read(row) for row in rows}
        ids = {row.id for row in rows}
        # Entries of earlier tries for rows that are no longer in the list, by key.
        self._removed = journal.entries(other_than=ids)
        self._warn_of_removed()

    def _read(self, row: Row) -> RowState:
        try:
            entry = self._stores[row.index].read()
        except ValueError:
            return _NOTHING
        if entry is None:
            return _NOTHING
        if entry.generation is None:
            return RowState(entry)
        noted = self._journal.get(saved_key(row.id))
        items = row.items(entry.generation)
        files = _noted_files(items, noted)
        if files and all(
            item.with_key(file.sha256, file.mime_type or "").uri == file.item.uri
            for item, file in zip(items, files, strict=True)
        ):
            return RowState(entry, RowResult.of(row, "reused", entry.generation, files))
        return RowState(entry, RowResult.of(row, "failed", entry.generation), files)

    def _warn_of_removed(self) -> None:
        """Warn about requests sent for rows that are no longer in the list."""
        if not self._removed:
            return
        unsaved = [
            entry.generation.id
            for key, entry in self._removed.items()
            if entry.generation is not None and not self._journal.is_saved(key)
        ]
        shown = ", ".join(unsaved[:_IDS_SHOWN]) or "none"
        more = f" and {len(unsaved) - _IDS_SHOWN} more" if len(unsaved) > _IDS_SHOWN else ""
        unknown = sum(entry.unknown_requests for entry in self._removed.values())
        self.log.warning(
            "Earlier tries sent %d requests for rows that are no longer in the list, which should be the same in each try. As far "
            "as is known, %s USD was billed for them; %s may have been billed. Unsaved generations: %s.",
            len(self._removed),
            self._cost_of_removed,
            "1 more request" if unknown == 1 else f"{unknown} more requests",
            shown + more,
        )

    @property
    def _cost_of_removed(self) -> Decimal:
        entries = self._removed.values()
        costs = (entry.generation.cost for entry in entries if entry.generation is not None)
        return sum((cost for cost in costs if cost is not None), _cost_of_replaced(entries))

    def state(self, row: Row) -> RowState:
        """Return what earlier tries recorded for a row."""
        return self._states[row.index]

    def result(self, row: Row) -> RowResult:
        """Return the result of a row that this try did not reach, or paid for and did not finish."""
        return self.state(row).result or RowResult(row, "not_sent")

    def mark_paid(self, row: Row, generation: Generation) -> None:
        """Remember that this try paid for a row, which counts as failed until its files are saved."""
        self._states[row.index] = replace(self.state(row), result=RowResult.of(row, "failed", generation))

    def is_current_epoch(self, entry: Entry) -> bool:
        """Return whether the task has not been cleared since the entry was written."""
        return entry.epoch == self._try.epoch

    def ledger(self, row: Row) -> Ledger:
        """Return the ledger of a row's request."""
        log = cast("Logger", self.log.bind(row=row.index))
        return Ledger(self._context, row.request.fingerprint, log, self._stores[row.index])

    def add_to_budget(self, budget: Budget) -> None:
        """
        Add what earlier tries spent to the budget.

        :raises GetimgError: The catalogue is unreachable, so what they may have spent is unknown.
        """
        states = [(row, state) for row in self._rows if (state := self.state(row)).entry is not None]
        # Known costs first: the catalogue, which the rest needs, may be unreachable.
        entries = [cast("Entry", state.entry) for _, state in states]
        budget.add_earlier_cost(self._cost_of_removed + _cost_of_replaced(entries))
        for _, state in states:
            budget.add_earlier_cost((state.result and state.result.cost) or Decimal(0))
        for entry in (*entries, *self._removed.values()):
            budget.add_earlier_unknown(entry.unknown_requests)
        for row, state in states:
            price = budget.price(row.request.checked)
            budget.reserve_earlier(price * cast("Entry", state.entry).unknown_requests)
            if state.result is not None and state.result.cost is None:
                budget.add_earlier_cost(price)
        if not self._removed:
            return
        # Their requests are unknown: assume the price of the most expensive row.
        price = max((budget.price(row.request.checked) for row in self._rows), default=Decimal(0))
        for entry in self._removed.values():
            budget.reserve_earlier(price * entry.unknown_requests)
            if entry.generation is not None and entry.generation.cost is None:
                budget.add_earlier_cost(price)

    def results(self, error: GetimgError) -> BatchResults:
        """Return the results of earlier tries for all rows, if this try can't start."""
        results = [self.result(row) for row in self._rows]
        entries = [entry for row in self._rows if (entry := self.state(row).entry) is not None]
        others = self._cost_of_removed + _cost_of_replaced(entries)
        return BatchResults(
            results,
            error,
            sum((result.cost for result in results if result.cost is not None), others),
            sum(entry.unknown_requests for entry in (*entries, *self._removed.values())),
        )

    def note_saved(self, row: Row, files: Sequence[SavedFile]) -> None:
        """Record where a row's files were saved."""
        # Not awaited: if the note is lost, the object itself shows that it was saved.
        self._journal.write_later(
            saved_key(row.id),
            [[file.item.uri, file.size, file.sha256, file.etag, file.mime_type] for file in files],
        )

    def forget_saved(self, row: Row) -> None:
        """Delete the note on an earlier response's files before another request is sent: it does not apply to the next response."""
        if self._journal.get(saved_key(row.id)) is not None:
            self._journal.write_later(saved_key(row.id), None)

    def note_gone(self, row: Row) -> None:
        """Record that a row's files are gone, so that it is sent again after a Clear."""
        self._journal.write_later(saved_key(row.id), _GONE)


def _cost_of_replaced(entries: Iterable[Entry]) -> Decimal:
    return sum((entry.replaced_cost for entry in entries), Decimal(0))


def _noted_files(items: Sequence[TransferItem], noted: Any) -> Sequence[SavedFile]:
    """Return the files that an earlier try noted, wherever they are; empty if it noted none."""
    if not isinstance(noted, list) or len(noted) != len(items):
        return ()
    return [
        SavedFile(item.at(uri), size, sha256, etag, mime_type)
        for item, (uri, size, sha256, etag, mime_type) in zip(items, noted, strict=True)
    ]
