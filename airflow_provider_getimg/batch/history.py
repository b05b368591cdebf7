# SPDX-License-Identifier: Apache-2.0
"""
What there was before this try: what earlier ones asked, paid for and saved, and what is in S3.

Three witnesses, the best first. The journal's entry of a row says whether its request was sent and what was answered; the
journal's note beside it says where the answer's files were saved; and the object at the row's key speaks for itself
where the try that saved it could no longer write a note.
"""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.api.errors import ObjectExistsError
from airflow_provider_getimg.api.types import Generation
from airflow_provider_getimg.batch.report import RowResult
from airflow_provider_getimg.durable.journal import saved_key
from airflow_provider_getimg.durable.ledger import Entry
from airflow_provider_getimg.s3.copier import Saved
from airflow_provider_getimg.s3.store import GENERATION_ID, MODEL, REQUEST_SHA256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk.types import Logger

    from airflow_provider_getimg.batch.budget import Budget
    from airflow_provider_getimg.batch.rows import Row
    from airflow_provider_getimg.durable.journal import Journal
    from airflow_provider_getimg.s3.plan import TransferItem
    from airflow_provider_getimg.s3.store import S3Store

# Stands for a row's files where the server said that they are gone.
_GONE = "gone"


class History:
    """
    What there was of the rows before this try. Safe to use from several threads.

    :param journal: What earlier tries wrote; open.
    :param store: Where files go.
    :param if_exists: ``skip``, ``replace`` or ``fail``. Under ``replace`` no object is looked at.
    :param log: The task's log.
    """

    def __init__(self, journal: Journal, store: S3Store, if_exists: str, log: Logger) -> None:
        self._journal = journal
        self._store = store
        self._if_exists = if_exists
        self._log = log
        # Keys at which objects lay when the try began; None where that is asked row by row.
        self._listed: frozenset[str] | None = None

    def entry(self, row: Row) -> Entry | None:
        """Return what an earlier try asked for this row; None for nothing, or for what can't be read."""
        try:
            return Entry.from_json(self._journal.previous(row.id))
        except ValueError:
            # The row's ledger will tell.
            return None

    def count(self, rows: Sequence[Row], budget: Budget) -> None:
        """
        Count what earlier tries spent.

        :raises GetimgError: What they may have spent is not known: the catalogue is out of reach.
        """
        entries = [(row, entry) for row in rows if (entry := self.entry(row)) is not None]
        costs = [
            Generation.from_json(entry.answer).cost if entry.answer is not None else None
            for _, entry in entries
        ]
        # What is known first: the catalogue, which is asked for the rest, may be out of reach.
        for cost in costs:
            budget.spent_before(cost or Decimal(0))
        for (row, entry), cost in zip(entries, costs, strict=True):
            price = budget.price(row.request.checked)
            budget.doubtful_before(price, entry.sent_before + (entry.answer is None))
            if entry.answer is not None and cost is None:
                budget.spent_before(price)

    def list_objects(self, rows: Sequence[Row]) -> None:
        """List what is at the keys of these rows, where one listing takes less than a look at each."""
        if rows and self._if_exists != "replace":
            self._listed = self._store.keys_among([row.expected_key for row in rows], rows[0].bucket)

    def note_saved(self, row: Row, files: Sequence[Saved]) -> None:
        """Record where a row's files are."""
        # Nothing waits for this: should it be lost, the object itself tells.
        self._journal.write_later(
            saved_key(row.id),
            [[file.copy.uri, file.size, file.sha256, file.etag, file.mime_type] for file in files],
        )

    def forget_saved(self, row: Row) -> None:
        """Take back the note on an earlier answer's files before another request is sent: it says nothing of the next one."""
        if self._journal.previous(saved_key(row.id)) is not None:
            self._journal.write_later(saved_key(row.id), None)

    def note_gone(self, row: Row) -> None:
        """Record that a row's files are gone: after a Clear, it is sent again."""
        self._journal.write_later(saved_key(row.id), _GONE)

    def saved(self, row: Row) -> RowResult | None:
        """Return the row's result if an earlier try saved its files: whatever became of their URLs since."""
        entry, noted = self.entry(row), self._journal.previous(saved_key(row.id))
        if entry is None or entry.answer is None or noted is None:
            return None
        files = _saved_before(row.copies(entry.answer), noted)
        if files is None:
            return None
        return RowResult.of(row, "reused", Generation.from_json(entry.answer), files)

    def known(self, row: Row) -> RowResult | None:
        """Return what earlier tries leave of a row that this try did not come to; None for nothing."""
        if (saved := self.saved(row)) is not None:
            return saved
        entry = self.entry(row)
        if entry is None or entry.answer is None:
            return None
        return RowResult.of(row, "failed", Generation.from_json(entry.answer))

    def find_existing(self, row: Row, *, refresh: bool = False) -> RowResult | None:
        """
        Look for the row's object, as an earlier run, or a try before a Clear, may have left it.

        :param refresh: Whether it may have come since the try began.

        :raises ObjectExistsError: Something else is at its key: an image could not be saved there, and none is paid.
        """
        if self._if_exists == "replace" or row.expected_key is None:
            return None
        if not refresh and self._listed is not None and row.expected_key not in self._listed:
            return None
        uri = row.expected_item().uri
        stored = self._store.head(row.bucket, row.expected_key, list_fallback=True)
        if stored is None:
            return None
        if self._if_exists == "fail":
            raise ObjectExistsError(
                f"{uri} already exists, and if_exists is 'fail'. No request was sent.", billed="no"
            )
        if not stored.readable:
            raise ObjectExistsError(
                f"{uri} already exists but cannot be read (s3:GetObject denied), so its origin is unknown. No request was "
                "sent. Permit s3:GetObject, give the row another key, or set if_exists='replace'.",
                billed="no",
            )
        if stored.metadata.get(REQUEST_SHA256) != row.request.fingerprint:
            raise ObjectExistsError(
                f"{uri} already exists, and was not made from this request. No request was sent. Give the row another key, "
                "or set if_exists='replace'.",
                billed="no",
            )
        copy = row.made_before(
            stored.metadata.get(GENERATION_ID), stored.metadata.get(MODEL), stored.mime_type
        )
        sha256 = stored.sha256 or self._store.sha256_of(copy)
        self._log.info("%s already exists, nothing was billed: %s.", row.name, copy.uri)
        file = Saved(copy, stored.size, sha256, stored.etag, stored.mime_type, copied=False)
        return RowResult(row, "reused", [file], copy.generation_id)


def unsaved(journal: Journal) -> list[Generation]:
    """Return what earlier tries were billed and did not save, whatever rows it was for."""
    found = []
    for value in journal.unsaved():
        # What can't be read is told by the ledger of its row.
        with suppress(ValueError):
            entry = Entry.from_json(value)
            if entry is not None and entry.answer is not None:
                found.append(Generation.from_json(entry.answer))
    return found


def _saved_before(copies: Sequence[TransferItem], noted: Any) -> list[Saved] | None:
    """Return the files as an earlier try noted them; None if it didn't, or if they belong elsewhere now."""
    if not isinstance(noted, list) or len(noted) != len(copies):
        return None
    files = []
    for copy, (uri, size, sha256, etag, mime_type) in zip(copies, noted, strict=True):
        copy = copy.located(sha256, mime_type)
        if copy.uri != uri:
            return None
        files.append(Saved(copy, size, sha256, etag, mime_type, copied=False))
    return files
