# SPDX-License-Identifier: Apache-2.0
"""Copy many files at once, the first to expire first; one failure doesn't stop the others."""

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

    from airflow_provider_getimg.s3.copier import Saved
    from airflow_provider_getimg.s3.plan import TransferItem

_TABLE_WIDTH = 160


def threads_for(concurrency: int) -> int:
    """Return how many files are worked on at once: while some are downloaded, others are on their way into S3."""
    return 2 * concurrency


def copy_many(
    copies: Sequence[TransferItem],
    save: Callable[[TransferItem], Saved],
    *,
    concurrency: int,
    abort: Callable[[], object],
    log: Logger,
) -> list[Saved]:
    """
    Save all files, ``concurrency`` downloads at once, and return them in the order of ``copies``.

    :param save: Saves one file, in any thread.
    :param abort: Ends what is in flight, if this thread is interrupted.
    :raises GetimgError: The one file's error, or :class:`TransferIncompleteError` where there are several files. The
        others are saved; the log has a table of what was and what was not.
    """
    outcomes: dict[TransferItem, Saved | GetimgError] = {}
    threads = min(threads_for(concurrency), len(copies))
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="getimg-transfer")
    try:
        futures = {pool.submit(save, copy): copy for copy in sorted(copies, key=_expiry)}
        pending = set(futures)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                copy, error = futures[future], future.exception()
                outcomes[copy] = future.result() if error is None else _reported(copy, error, log)
    except BaseException:
        # A time-out, a signal or a fault of ours: nothing new begins, what runs is cut short, without waiting for a
        # request to S3 to end.
        pool.shutdown(wait=False, cancel_futures=True)
        abort()
        raise
    pool.shutdown()
    failures = {copy: outcome for copy, outcome in outcomes.items() if isinstance(outcome, GetimgError)}
    if failures:
        if len(copies) > 1:
            log.error("%s", _table(copies, outcomes))
        raise _failure(copies, failures)
    return [outcome for copy in copies if not isinstance(outcome := outcomes[copy], GetimgError)]


def _reported(copy: TransferItem, error: BaseException, log: Logger) -> GetimgError:
    """Return why a file was not saved. A fault of ours, or of a library, stops no other file and hides no bill."""
    if isinstance(error, GetimgError):
        return error
    log.error("Saving %s failed.", copy.name, exc_info=error)
    fault = TransferError(
        f"{capital(copy.name)} was not saved: {type(error).__name__} ({reason(error)}), see the log."
    )
    return fault.with_unsaved_bill([copy.generation_id], copy.cost)


def _expiry(copy: TransferItem) -> datetime:
    """Return when a file expires: what is not known may be soon."""
    return copy.media.deletes_at or datetime.min.replace(tzinfo=UTC)


def _failure(copies: Sequence[TransferItem], failures: dict[TransferItem, GetimgError]) -> GetimgError:
    lost = [copy for copy in copies if copy in failures]
    errors = [failures[copy] for copy in lost]
    if len(copies) == 1:
        return errors[0]
    # A generation is billed once, however many files it has.
    cost = total_cost({copy.generation_id: copy for copy in lost}.values())
    billed = "an amount that the API did not give" if cost is None else f"{cost} USD"
    more = f" And {len(errors) - 1} more, see the table in the log." if len(errors) > 1 else ""
    return TransferIncompleteError(
        f"{len(copies) - len(errors)} of {len(copies)} files are saved; the other {len(errors)}, billed at {billed}, are not. "
        f"{errors[0].message}{more}",
        errors,
        billed="yes",
        cost=cost,
        generation_ids=list(dict.fromkeys(copy.generation_id for copy in lost)),
    )


def _table(copies: Sequence[TransferItem], outcomes: dict[TransferItem, Saved | GetimgError]) -> str:
    # A failure alone needs them.
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("generation", "file", "saved", "object, or why not", title="Files", box=box.ASCII)
    for copy in copies:
        outcome = outcomes[copy]
        failed = isinstance(outcome, GetimgError)
        table.add_row(
            copy.generation_id,
            str(copy.index),
            "no" if failed else "yes",
            outcome.message if isinstance(outcome, GetimgError) else outcome.copy.uri,
        )
    # Plain text of one width, whatever terminal or log the worker writes to.
    text = io.StringIO()
    Console(file=text, width=_TABLE_WIDTH, color_system=None, force_terminal=False, markup=False).print(table)
    return text.getvalue().rstrip()
