# SPDX-License-Identifier: Apache-2.0
"""
Runs rows through two stages, many at once: each sender takes a row, and an uploader does whatever remains.

The pipeline knows nothing about money or S3. It ends when all rows are done, or when the task is terminated and its grace
period is over.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import GetimgError, KilledError, UnavailableError
from airflow_provider_getimg.batch.report import without_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow.sdk.types import Logger

    from airflow_provider_getimg.batch.report import RowResult
    from airflow_provider_getimg.batch.row_steps import ApiAccess, RowSteps
    from airflow_provider_getimg.batch.rows import Row
    from airflow_provider_getimg.batch.settings import BatchSettings
    from airflow_provider_getimg.s3.copier import Copier

#: Seconds that requests in flight have to complete once the task is terminated. It may be killed sooner: by Airflow five
#: seconds after "mark failed" or a Clear, by Kubernetes at the end of the pod's grace period. Waiting loses nothing then.
GRACE_SECONDS = 120.0
#: Seconds after that until images that have arrived but are not saved yet are abandoned.
SAVE_SECONDS = 60.0
#: Seconds after that until the task ends, whatever is still running.
_END_SECONDS = 3.0
_TICK_SECONDS = 0.25


@dataclass(frozen=True)
class SendLater:
    """A row whose request is to be sent later, after all rows that are queued now."""

    send: Callable[[], RowResult | Callable[[], RowResult]]


class Pipeline:
    """
    Runs rows through their steps.

    :param steps: The steps of each row.
    :param settings: How many threads each stage has.
    :param api: Where requests are sent, until its stop is set by a step or by Airflow.
    :param copier: Saves the images.
    :param log: The task's log.
    """

    def __init__(
        self, steps: RowSteps, settings: BatchSettings, api: ApiAccess, copier: Copier, log: Logger
    ) -> None:
        self._steps = steps
        self._settings = settings
        self._client = api.client
        self._stop = api.stop
        self._copier = copier
        self._log = log
        self._lock = threading.Lock()
        self._results: dict[int, RowResult] = {}
        self._failed = 0
        self._fault: BaseException | None = None
        self._total = 0
        self._finished = threading.Event()

    def result(self, row: Row) -> RowResult | None:
        """Return the result of a row; None if there is none yet."""
        return self._results.get(row.index)

    def run(self, rows: Sequence[Row], tick: Callable[[int, int], object]) -> None:
        """
        Run all rows through their steps.

        :param tick: Called periodically with how many rows are done, and how many of these failed.
        :raises BaseException: A bug in the provider, raised once everything in progress has ended.
        """
        self._total = len(rows)
        senders = ThreadPoolExecutor(self._settings.senders, "getimg-send")
        uploaders = ThreadPoolExecutor(self._settings.uploaders, "getimg-upload")

        def send(
            row: Row, step: Callable[[], RowResult | Callable[[], RowResult] | SendLater]
        ) -> RowResult | None:
            sent = step()
            if isinstance(sent, SendLater):
                senders.submit(self._run_step, row, partial(send, row, sent.send))
            elif callable(sent):
                uploaders.submit(self._run_step, row, sent)
            else:
                return sent
            return None

        try:
            for row in rows:
                senders.submit(self._run_step, row, partial(send, row, partial(self._steps.send, row)))
            self._wait(tick)
        except BaseException as error:
            # Most likely a timeout raised by Airflow. Save the images that have arrived, and send nothing more.
            self._stop.set(KilledError(f"The task ended with {type(error).__name__}."))
            self._warn(
                "%s: no more requests are sent; images that have arrived are saved.", type(error).__name__
            )
            self._wait(tick)
            raise
        finally:
            senders.shutdown(wait=False, cancel_futures=True)
            uploaders.shutdown(wait=False, cancel_futures=True)
        if self._fault is not None:
            raise self._fault

    def _warn(self, message: str, *args: object) -> None:
        # Airflow's supervisor reads the log. If it has died, what is in flight can still be recorded.
        with suppress(OSError):
            self._log.warning(message, *args)

    def _run_step(self, row: Row, step: Callable[[], RowResult | None]) -> None:
        """Run a step of a row, and record the result if it was the last step."""
        try:
            result = step()
        except GetimgError as error:
            result = self._steps.failed(row, without_traceback(error))
        except BaseException as fault:
            # A bug in the provider, which the user must see; but let everything in progress end first.
            with self._lock:
                self._fault = self._fault or fault
            shown = UnavailableError(
                f"A bug in this provider raised {type(fault).__name__}; the log has the stack trace.",
                billed="unknown",
            )
            self._stop.set(shown)
            result = self._steps.failed(row, shown)
        if result is None:
            return
        with self._lock:
            self._results[row.index] = result
            self._failed += not result.is_saved
            self._steps.on_row_result(result)
            if len(self._results) == self._total:
                self._finished.set()

    def _wait(self, tick: Callable[[int, int], object]) -> None:
        """Wait until all rows are done; once the task is terminated, only for a limited time."""
        stopped_at: float | None = None
        aborted = abandoned = False
        while self._total and not self._finished.wait(_TICK_SECONDS):
            with self._lock:
                done, failed = len(self._results), self._failed
            with suppress(OSError):
                tick(done, failed)
            if not self._stop.is_killed:
                continue
            if stopped_at is None:
                stopped_at = time.monotonic()
                if in_flight := self._client.in_flight:
                    self._warn(
                        "%d requests are in flight; waiting up to %.0f seconds for them, unless Airflow ends the task sooner. An "
                        "aborted request may still be billed.",
                        in_flight,
                        GRACE_SECONDS,
                    )
            passed = time.monotonic() - stopped_at
            if not aborted and passed >= GRACE_SECONDS:
                aborted = True
                if in_flight := self._client.abort():
                    self._warn(
                        "%d requests in flight were aborted; they may still be billed.",
                        in_flight,
                    )
            if not abandoned and passed >= GRACE_SECONDS + SAVE_SECONDS:
                abandoned = True
                self._copier.abort()
            if passed >= GRACE_SECONDS + SAVE_SECONDS + _END_SECONDS:
                return
