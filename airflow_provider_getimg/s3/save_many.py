# SPDX-License-Identifier: Apache-2.0
"""Copy many files at once, soonest to expire first; one failure doesn't stop the others."""

from __future__ import annotations

import io
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import GetimgError, TransferError, TransferIncompleteError
from airflow_provider_getimg.api.signed_urls import reason
from airflow_provider_getimg.s3.download import capital
from airflow_provider_getimg.s3.plan import total_cost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow.sdk.types import Logger

    from airflow_provider_getimg.s3.copier import SavedFile
    from airflow_provider_getimg.s3.plan import TransferItem

_TABLE_WIDTH = 160


def threads_for(concurrency: int) -> int:
    """Return how many files to process at once: while some are downloaded, others are uploaded to S3."""
    return 2 * concurrency


def save_many(
    items: Sequence[TransferItem],
    save: Callable[[TransferItem], SavedFile],
    *,
    concurrency: int,
    abort: Callable[[], object],
    log: Logger,
) -> list[SavedFile]:
    """
    Save all files, ``concurrency`` downloads at once, and return them in the order of ``items``.

    :param save: Saves one file; called from several threads.
    :param abort: Aborts the copies in flight, if this thread is interrupted.
    :raises GetimgError: The error of a single file, or :class:`TransferIncompleteError` if there are several files. The
        others are saved; the log has a table of which files were saved and which were not.
    """
    outcomes: dict[TransferItem, SavedFile | GetimgError] = {}
    threads = min(threads_for(concurrency), len(items))
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="getimg-transfer")
    try:
        futures = {pool.submit(save, item): item for item in sorted(items, key=_expiry)}
        pending = set(futures)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                item, error = futures[future], future.exception()
                outcomes[item] = future.result() if error is None else _reported(item, error, log)
    except BaseException:
        # A timeout, a signal or a bug: start nothing new and abort the copies in flight, without waiting for S3 requests
        # to finish.
        pool.shutdown(wait=False, cancel_futures=True)
        abort()
        raise
    pool.shutdown()
    failures = {item: outcome for item, outcome in outcomes.items() if isinstance(outcome, GetimgError)}
    if failures:
        if len(items) > 1:
            log.error("%s", _table(items, outcomes))
        raise _failure(items, failures)
    return [outcome for item in items if not isinstance(outcome := outcomes[item], GetimgError)]


def _reported(item: TransferItem, error: BaseException, log: Logger) -> GetimgError:
    """Return why a file was not saved. A bug here or in a library must not stop other files or hide the bill."""
    if isinstance(error, GetimgError):
        return error
    log.error("Saving %s failed.", item.name, exc_info=error)
    fault = TransferError(
        f"{capital(item.name)} was not saved: {type(error).__name__} ({reason(error)}), see the log."
    )
    return fault.with_bill([item.generation_id], item.cost)


def _expiry(item: TransferItem) -> datetime:
    """Return when a file expires; an unknown time may be soon, so it sorts first."""
    return item.media.deletes_at or datetime.min.replace(tzinfo=UTC)


def _failure(items: Sequence[TransferItem], failures: dict[TransferItem, GetimgError]) -> GetimgError:
    lost = [item for item in items if item in failures]
    errors = [failures[item] for item in lost]
    if len(items) == 1:
        return errors[0]
    # A generation is billed once, however many files it has.
    cost = total_cost({item.generation_id: item for item in lost}.values())
    billed = "an amount that the API did not give" if cost is None else f"{cost} USD"
    more = f" And {len(errors) - 1} more, see the table in the log." if len(errors) > 1 else ""
    return TransferIncompleteError(
        f"{len(items) - len(errors)} of {len(items)} files are saved; the other {len(errors)}, billed at {billed}, are not. "
        f"{errors[0].message}{more}",
        errors,
        billed="yes",
        cost=cost,
        generation_ids=list(dict.fromkeys(item.generation_id for item in lost)),
    )


def _table(items: Sequence[TransferItem], outcomes: dict[TransferItem, SavedFile | GetimgError]) -> str:
    # Only a failure needs these.
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("generation", "file", "saved", "object or error", title="Files", box=box.ASCII)
    for item in items:
        outcome = outcomes[item]
        failed = isinstance(outcome, GetimgError)
        table.add_row(
            item.generation_id,
            str(item.index),
            "no" if failed else "yes",
            outcome.message if isinstance(outcome, GetimgError) else outcome.item.uri,
        )
    # Plain text of a fixed width, whatever terminal or log the worker writes to.
    text = io.StringIO()
    Console(file=text, width=_TABLE_WIDTH, color_system=None, force_terminal=False, markup=False).print(table)
    return text.getvalue().rstrip()
