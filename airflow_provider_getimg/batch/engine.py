# SPDX-License-Identifier: Apache-2.0
"""
Send a request for each row, and save each image as soon as its response arrives.

Two kinds of threads: senders, each of which takes a row, checks whether its object already exists, waits for a slot, and
sends the request; and uploaders, which copy the files to S3. A slot is held from the intent in the ledger to the response
and no longer: there are more senders than slots, so that a row is ready whenever one is free.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_getimg.api.errors import (
    AuthenticationError,
    ConnectionConfigError,
    CostLimitError,
    FileGoneError,
    FileRefusedError,
    GetimgError,
    InsufficientBalanceError,
    KilledError,
    NetworkRefusedError,
    NoConnectionError,
    ObjectExistsError,
    OutcomeUnknownError,
    PaidFilesGoneError,
    RateLimitError,
    RequestRefusedError,
    StoreRefusedError,
    UnavailableError,
)
from airflow_provider_getimg.api.references import check_references, references_beyond_documented
from airflow_provider_getimg.api.types import Generation
from airflow_provider_getimg.batch.limiter import PacedClient
from airflow_provider_getimg.batch.progress import Progress
from airflow_provider_getimg.batch.report import BatchResults, RowResult
from airflow_provider_getimg.durable.ledger import Ledger, LedgerError
from airflow_provider_getimg.durable.paid_generation import PaidGeneration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.types import Logger
    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.api.client import GetimgClient
    from airflow_provider_getimg.api.types import ImageRequest
    from airflow_provider_getimg.batch.budget import Budget
    from airflow_provider_getimg.batch.history import History
    from airflow_provider_getimg.batch.limiter import RateLimiter
    from airflow_provider_getimg.batch.report import Outcome
    from airflow_provider_getimg.batch.rows import Row
    from airflow_provider_getimg.durable.journal import Journal
    from airflow_provider_getimg.s3.copier import Copier, Saved

#: A row whose request found no connection is asked for so often within a try.
CONNECTION_ATTEMPTS = 5
#: So many in a row, and nothing more is sent: it might all be billed, or all be lost. A refusal by S3 that will not pass needs
#: no second one.
MAX_CONSECUTIVE_UNKNOWN = 5
MAX_CONSECUTIVE_UNSAVED = 5
#: Until the first image is saved, so many that are billed and not saved hold further requests.
UNPROVEN_BACKLOG = 1
#: Seconds that requests in flight get to be answered once the task was told to end: Airflow kills it after five.
GRACE_SECONDS = 3.0
#: Seconds after that until files that have arrived are given up.
SAVE_SECONDS = 60.0
_TICK_SECONDS = 0.25
# Whether they go together is the same for all rows that ask for them.
_SETTINGS = ("model", "aspect_ratio", "resolution", "output_format")
# Rows that are not sent, for an answer of theirs was lost, come after those with files that die.
_LAST = datetime.max.replace(tzinfo=UTC)
# What expires at a time that is not known may do so soon.
_FIRST = datetime.min.replace(tzinfo=UTC)


class Stop:
    """Whether no more requests are to be sent, and why. Safe to set from a signal handler."""

    def __init__(self) -> None:
        #: Set once nothing more is sent.
        self.event = threading.Event()
        self._reasons: list[GetimgError] = []

    @property
    def reason(self) -> GetimgError | None:
        """Why: the first reason that was given."""
        return self._reasons[0] if self._reasons else None

    @property
    def is_killed(self) -> bool:
        """Whether the task was terminated: what is in flight has little time left."""
        return any(isinstance(reason, KilledError) for reason in self._reasons)

    def set(self, reason: GetimgError) -> None:
        """Stop asking."""
        self._reasons.append(reason)
        self.event.set()


@dataclass(frozen=True)
class Rules:
    """
    What holds for all rows.

    :param on_unknown_outcome: ``fail`` or ``resubmit``.
    :param rate_limit_wait: Seconds to wait within a try where the API asks to wait, unless it is the last one.
    :param senders: Threads that send requests.
    :param uploaders: Threads that save images.
    """

    on_unknown_outcome: str
    rate_limit_wait: float
    senders: int
    uploaders: int


class BatchRun:
    """
    One try of a batch.

    :param rows: What to ask for.
    :param rules: What holds for all of them.
    :param context: The task's context.
    :param journal: What earlier tries asked and paid for; open.
    :param client: Sends the requests.
    :param s3_client: Reads references in S3.
    :param history: What there was before this try.
    :param copier: Saves them.
    :param abandon: Ends the copies in flight.
    :param pace: The slots.
    :param budget: The money.
    :param stop: Ends the asking.
    :param log: The task's log.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        rules: Rules,
        *,
        context: Context,
        journal: Journal,
        client: GetimgClient,
        s3_client: Callable[[], S3Client],
        history: History,
        copier: Copier,
        abandon: Callable[[], object],
        pace: RateLimiter,
        budget: Budget,
        stop: Stop,
        log: Logger,
    ) -> None:
        self._rows = rows
        self._rules = rules
        self._context = context
        self._journal = journal
        self._client = client
        self._paced_client = PacedClient(client, pace)
        self._s3_client = s3_client
        self._history = history
        self._copier = copier
        self._abandon = abandon
        self._pace = pace
        self._budget = budget
        self._stop = stop
        self._log = log
        self._lock = threading.Lock()
        self._results: dict[int, RowResult] = {}
        #: Why S3 takes no write, if so: no request was sent.
        self.store_error: GetimgError | None = None
        self._finished = threading.Event()
        self._fault: BaseException | None = None
        self._backlog = 0
        self._failed = 0
        # Rows that earlier tries paid for and did not save: the next is sent once one of them is saved, or none is left.
        self._owed: set[int] = set()
        self._owed_error: GetimgError | None = None
        self._may_send = threading.Event()
        # Faults of one row's file, which say little of the others'.
        self._rows_own_faults: tuple[type[GetimgError], ...] = (FileGoneError, PaidFilesGoneError)
        # By model, and by all that is asked for but the picture itself.
        self._refused: dict[tuple[str | None, ...], GetimgError] = {}
        self._consecutive_unknown = 0
        self._consecutive_unsaved = 0
        # Enough for all slots' answers at once, on top of what the uploaders have in hand.
        self._backlog_at_most = 2 * (rules.senders + rules.uploaders)
        self._has_saved = False

    @property
    def results(self) -> BatchResults:
        """What became of the rows, so far."""
        rows = [
            self._results.get(row.index) or self._history.known(row) or RowResult(row, "not_sent")
            for row in self._rows
        ]
        return BatchResults(rows, self._stop.reason, self._budget.billed, self._budget.unknown_outcomes)

    def run(self, check_store: Callable[[BatchResults], None]) -> BatchResults:
        """
        Ask for all rows, and save them.

        :param check_store: Called with what is known beforehand: where it raises a ``GetimgError``, nothing is sent.
        :raises CostLimitError: All together are over the budget. Nothing was sent.
        """
        rows = self._in_order()
        try:
            self._copier.check_before_payment()
            check_store(self.results)
        except GetimgError as error:
            self.store_error = error
            self._stop.set(error)
            return self.results
        progress = Progress(len(rows), self._log)
        self._senders = ThreadPoolExecutor(self._rules.senders, "getimg-send")
        self._uploaders = ThreadPoolExecutor(self._rules.uploaders, "getimg-upload")
        try:
            for row in rows:
                self._senders.submit(self._run_step, self._ask, row)
            self._wait(progress)
        except BaseException as error:
            # A time-out of Airflow's, most likely. What has arrived is saved; what was not asked for is left.
            self._stop.set(KilledError(f"The task ended with {type(error).__name__}."))
            self._log.warning(
                "%s: no more requests are sent; images that have arrived are saved.", type(error).__name__
            )
            self._wait(progress)
            raise
        finally:
            self._senders.shutdown(wait=False, cancel_futures=True)
            self._uploaders.shutdown(wait=False, cancel_futures=True)
        if self._fault is not None:
            raise self._fault
        return self.results

    def _in_order(self) -> list[Row]:
        """Check the budget, and order paid rows first, by the expiry of their URLs."""
        paid: list[tuple[datetime, Row]] = []
        to_ask = []
        has_saved = is_owed_now = False
        for row in self._rows:
            entry = self._history.entry(row)
            if entry is not None and entry.answer is not None:
                generation = Generation.from_json(entry.answer)
                paid.append((min(file.deletes_at or _FIRST for file in generation.data), row))
                if self._history.saved(row) is not None:
                    has_saved = True
                    continue
                self._owed.add(row.index)
                is_owed_now = is_owed_now or entry.epoch == int(self._context["ti"].max_tries)
            elif entry is not None and self._rules.on_unknown_outcome == "fail":
                paid.append((_LAST, row))
            else:
                to_ask.append(row)
        try:
            self._history.count(self._rows, self._budget)
            self._check_references(row.request.checked for row in to_ask)
            self._budget.check(row.request.checked for row in to_ask)
        except GetimgError as error:
            if not (paid or self._budget.billed or self._budget.unknown_outcomes):
                raise
            # Billed images are saved all the same, and the bill is reported.
            self._stop.set(error)
        self._history.list_objects(to_ask)
        if has_saved or not is_owed_now:
            # Saving works, or a user has cleared the task since: a page in the place of one file must not hold up the rest.
            self._rows_own_faults += (FileRefusedError, ObjectExistsError)
        if not self._owed:
            self._may_send.set()
        return [row for _, row in sorted(paid, key=lambda entry: entry[0])] + to_ask

    def _check_references(self, requests: Iterable[ImageRequest]) -> None:
        """Let the catalogue say whether a model takes more references than are documented."""
        get_model = cache(self._client.get_model)
        for request in requests:
            if references_beyond_documented(request):
                check_references(get_model(request.model), request)

    def _wait(self, progress: Progress) -> None:
        """Wait until all rows have ended; once terminated, not for long."""
        stopped_at: float | None = None
        cut = abandoned = False
        while self._rows and not self._finished.wait(_TICK_SECONDS):
            with self._lock:
                done, failed = len(self._results), self._failed
            progress.tell(done, failed, self._pace.in_flight, self._budget.billed, limit=self._pace.limit)
            if not self._stop.is_killed:
                continue
            now = time.monotonic()
            stopped_at = stopped_at or now
            if not cut and now >= stopped_at + GRACE_SECONDS:
                cut = True
                if in_flight := self._client.abort():
                    self._log.warning(
                        "%d requests were in flight and are given up: they may be billed all the same.",
                        in_flight,
                    )
            if not abandoned and now >= stopped_at + GRACE_SECONDS + SAVE_SECONDS:
                abandoned = True
                self._abandon()
            if now >= stopped_at + GRACE_SECONDS + SAVE_SECONDS + GRACE_SECONDS:
                return

    def _run_step(self, step: Callable[..., RowResult | None], row: Row, *args: Any) -> None:
        """Do a step of a row, and note its result where that is the last one."""
        try:
            result = step(row, *args)
        except GetimgError as error:
            # An earlier try may have paid for it.
            known = self._history.known(row) or RowResult(row, "failed")
            result = replace(known, outcome="failed", error=_without_traceback(error))
        except BaseException as fault:
            # Ours, and so for the user to see; but what is under way is brought to its end.
            self._fault = self._fault or fault
            shown = UnavailableError(f"It failed with {type(fault).__name__}.", billed="unknown")
            self._stop.set(shown)
            result = RowResult(row, "failed", error=shown)
        if result is None:
            return
        with self._lock:
            self._results[row.index] = result
            self._failed += not result.is_saved
            self._settle_owed(row, result)
            if len(self._results) == len(self._rows):
                self._finished.set()

    def _settle_owed(self, row: Row, result: RowResult | None) -> None:
        """
        Let requests be sent once something that was paid for before could be saved.

        A try that can save nothing of what earlier ones paid for must not buy more.

        :param result: None if there is no file to save: the row is generated again.
        """
        if row.index not in self._owed:
            return
        self._owed.remove(row.index)
        error = result.error if result is not None else None
        if error is not None and not isinstance(error, self._rows_own_faults):
            self._owed_error = error
        if result is not None and result.is_saved:
            self._may_send.set()
        elif not self._owed and not self._may_send.is_set():
            if self._owed_error is not None:
                self._stop.set(self._owed_error)
            self._may_send.set()

    def _ask(self, row: Row) -> RowResult | None:
        if (saved := self._history.saved(row)) is not None:
            return saved
        log = cast("Logger", self._log.bind(row=row.index))
        ledger = Ledger(self._context, row.request.fingerprint, log, self._journal.place(row.id))
        paid = PaidGeneration(
            ledger,
            # Read once, however often a rate limit sends it back.
            cache(lambda: row.request.resolve(self._s3_client)),
            on_unknown_outcome=self._rules.on_unknown_outcome,
            rate_limit_wait=0,
            killed=self._stop.event,
            all_gone=self._copier.all_gone,
            log=log,
            slot=partial(self._slot, row),
        )
        try:
            answer = paid.recorded()
        except (OutcomeUnknownError, PaidFilesGoneError):
            # A try that was given up for dead may have saved what it could no longer record.
            there = None
            with contextlib.suppress(GetimgError):
                there = self._history.find_existing(row, refresh=True)
            if there is not None:
                return there
            raise
        is_new = answer is None
        if answer is None:
            with self._lock:
                self._settle_owed(row, None)
            while not self._may_send.wait(_TICK_SECONDS) and not self._stop.event.is_set():
                pass
            if self._stop.event.is_set():
                return RowResult(row, "not_sent")
            self._check_refused(row)
            # What an earlier try sent may be there without a note; the listing is of the others.
            refresh = self._history.entry(row) is not None
            if (there := self._history.find_existing(row, refresh=refresh)) is not None:
                return there
            self._history.forget_saved(row)
            try:
                answer = self._generate(paid, row, ledger.is_last_try)
            except KilledError:
                return RowResult(row, "not_sent")
        else:
            self._count_unsaved(1)
        self._uploaders.submit(self._run_step, self._save, row, answer, is_new)
        return None

    @contextlib.contextmanager
    def _slot(self, row: Row) -> Iterator[None]:
        """Wait for a slot. What an answer means for the other rows is noted before the slot is another's."""
        with self._pace.acquire():
            self._check_refused(row)
            try:
                yield
            except GetimgError as error:
                self._note_refusal(row, error)
                raise
            # Answered, and so billed.
            self._count_unsaved(1)

    def _generate(self, paid: PaidGeneration, row: Row, is_last_try: bool) -> dict[str, Any]:
        """Send the row's request, however often rate limits send it back."""
        price = self._budget.price(row.request.checked)
        try:
            self._budget.reserve(price)
        except CostLimitError as error:
            self._stop.set(error)
            raise KilledError(error.message) from None
        unreachable = 0
        while True:
            try:
                answer = paid.generate(self._paced_client)
            except RateLimitError as error:
                if (error.retry_after or 0) > self._rules.rate_limit_wait and not is_last_try:
                    self._budget.release(price)
                    self._stop.set(error)
                    raise KilledError(error.message) from None
            except NoConnectionError as error:
                unreachable += 1
                if unreachable == CONNECTION_ATTEMPTS:
                    self._budget.release(price)
                    # What five attempts over some time did not reach, the other rows won't.
                    self._stop.set(error)
                    raise
            except OutcomeUnknownError as error:
                self._budget.mark_unknown()
                self._unknown(error)
                raise
            except GetimgError as error:
                self._budget.release(price)
                if isinstance(error, AuthenticationError | InsufficientBalanceError | LedgerError):
                    self._stop.set(error)
                raise
            else:
                self._budget.commit(price, Generation.from_json(answer).cost)
                self._consecutive_unknown = 0
                return answer

    def _note_refusal(self, row: Row, error: GetimgError) -> None:
        if _is_of_the_model(error):
            self._refused[(row.request.checked.model,)] = error
        elif error.status == 400 and error.param in _SETTINGS:
            self._refused[_settings(row)] = error

    def _check_refused(self, row: Row) -> None:
        """Refuse what the API would refuse as it refused another row; a list of hundreds would be sent for nothing."""
        if (refusal := self._refused.get((row.request.checked.model,))) is not None:
            raise RequestRefusedError(
                f"It was not sent, as another row with this model was refused. {refusal.message}"
            )
        if (refusal := self._refused.get(_settings(row))) is not None:
            raise RequestRefusedError(
                f"It was not sent, as another row with these settings was refused. {refusal.message}"
            )

    def _unknown(self, error: OutcomeUnknownError) -> None:
        with self._lock:
            self._consecutive_unknown += 1
            too_many = self._consecutive_unknown == MAX_CONSECUTIVE_UNKNOWN
        if too_many and not self._stop.event.is_set():
            self._stop.set(
                UnavailableError(
                    f"{MAX_CONSECUTIVE_UNKNOWN} consecutive requests ended without an answer, and each may have been billed. The last: "
                    f"{error.message}",
                    billed="unknown",
                )
            )

    def _save(self, row: Row, answer: dict[str, Any], is_new: bool) -> RowResult:
        generation = Generation.from_json(answer)
        try:
            files = self._saved(row, answer, is_new)
        except GetimgError as error:
            if isinstance(error, FileGoneError):
                self._history.note_gone(row)
            self._unsaved(error)
            return RowResult.of(row, "failed", generation, error=_without_traceback(error))
        finally:
            self._count_unsaved(-1)
        outcome: Outcome = "saved" if is_new else "reused"
        return RowResult.of(row, outcome, generation, files)

    def _saved(self, row: Row, answer: dict[str, Any], is_new: bool) -> list[Saved]:
        """Save the files of an answer, and note that they are."""
        files: list[Saved] = []
        failures: list[GetimgError] = []
        for copy in row.copies(answer):
            try:
                files.append(self._copier.save(copy, is_new=is_new and copy.key == row.expected_key))
            except GetimgError as error:
                # It is no reason to lose the others.
                failures.append(error)
        if failures:
            # The one that a retry may help, if any.
            raise min(failures, key=lambda error: isinstance(error, FileGoneError | FileRefusedError))
        self._consecutive_unsaved = 0
        self._has_saved = True
        self._history.note_saved(row, files)
        return files

    def _unsaved(self, error: GetimgError) -> None:
        if isinstance(error, KilledError):
            return
        with self._lock:
            self._consecutive_unsaved += 1
            too_many = self._consecutive_unsaved == MAX_CONSECUTIVE_UNSAVED
        if too_many or isinstance(error, StoreRefusedError | NetworkRefusedError | ConnectionConfigError):
            self._stop.set(error)

    def _count_unsaved(self, change: int) -> None:
        """Hold requests while too much of what is billed is not saved yet; little, until saving is proven to work."""
        with self._lock:
            self._backlog += change
            most = self._backlog_at_most if self._has_saved else UNPROVEN_BACKLOG
            self._pace.pause(self._backlog >= most)


def _settings(row: Row) -> tuple[str | None, ...]:
    return tuple(getattr(row.request.checked, name) for name in _SETTINGS)


def _is_of_the_model(error: GetimgError) -> bool:
    """Tell whether a refusal is of the model, in any of the words that an API has for that, and so of all its rows."""
    if not isinstance(error, RequestRefusedError) or error.status not in (400, 403, 404):
        return False
    # Nothing else of a generation can be missing.
    return error.param == "model" or "model" in (error.code or "").lower() or error.status == 404


def _without_traceback(error: GetimgError) -> GetimgError:
    """Return an error without the frames that it went through: they hold bodies of requests and files."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
