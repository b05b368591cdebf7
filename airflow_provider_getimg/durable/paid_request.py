# SPDX-License-Identifier: Apache-2.0
"""One billed request across the tries of a task: sent at most once unless the user says otherwise."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_getimg.api.errors import (
    GetimgError,
    KilledError,
    OutcomeUnknownError,
    PaidFilesGoneError,
)
from airflow_provider_getimg.durable.postponed_alarm import PostponedAlarm
from airflow_provider_getimg.retry import wait_out_rate_limits

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from decimal import Decimal

    from airflow_provider_getimg.api.types import Generation
    from airflow_provider_getimg.durable.ledger import Entry, Ledger

UNKNOWN_OUTCOME = ("fail", "resubmit")

_INTERRUPTED = "The try ended with {} before a response arrived."

ResponseT = TypeVar("ResponseT")


class PaidRequest:
    """
    A billed request that goes through the ledger.

    :param ledger: The task's ledger.
    :param on_unknown_outcome: ``fail`` or ``resubmit``.
    :param killed: Set when the task is terminated: nothing is sent after that.
    :param all_gone: Returns whether all files of a response are past their deletion time and the server confirms it.
    """

    #: What the request generates, for messages.
    noun = "image"

    def __init__(
        self,
        ledger: Ledger,
        *,
        on_unknown_outcome: str,
        killed: threading.Event,
        all_gone: Callable[[Generation], bool],
    ) -> None:
        self._ledger = ledger
        self._resubmits = on_unknown_outcome == "resubmit"
        self._killed = killed
        self._all_gone = all_gone
        self._log = ledger.log

    @property
    def replaced_cost(self) -> Decimal:
        """What earlier generations cost that this one replaced, in USD."""
        return self._ledger.replaced_cost

    def delivered(self) -> None:
        """Record that the response was delivered to the user: from now on, a Clear generates a new one."""
        self._ledger.delivered()

    def _previous(self) -> Entry | None:
        """
        Return the entry of an earlier try that still applies; None if the request must be sent.

        :raises OutcomeUnknownError: Under ``fail``: an earlier try sent the request and saw no response.
        :raises PaidFilesGoneError: Under ``fail``: an earlier try paid for it, and its files are gone.
        :raises LedgerError: It is unknown what earlier tries did.
        """
        entry = self._ledger.previous()
        if entry is None:
            return None
        if entry.state == "submitted":
            seen = entry.failure or "No response was recorded: its worker was killed, lost, or out of time."
            self._raise_unless_resubmitting(
                OutcomeUnknownError, f"Try {entry.try_number} sent this request at {entry.started_at}. {seen}"
            )
            return None
        generation = entry.generation
        if generation is None or not self._all_gone(generation):
            return entry
        gone = _files_gone(entry, generation)
        if self._ledger.is_before_clear(entry):
            self._log.warning(
                "%s The task was cleared since: a new %s is generated, and billed.", gone, self.noun
            )
        else:
            self._raise_unless_resubmitting(
                PaidFilesGoneError, gone, cost=generation.cost, generation_ids=[generation.id]
            )
        return None

    def _reuse(self, entry: Entry, generation: Generation) -> Generation:
        self._log.info(
            "Reusing generation %s from try %d (requested %s ago). Nothing was billed.",
            generation.id,
            entry.try_number,
            entry.age,
        )
        return generation

    def _send(
        self,
        post: Callable[[], ResponseT],
        abort: Callable[[], object],
        record: Callable[[ResponseT], None],
        rate_limit_wait: float,
    ) -> ResponseT:
        """
        Send the request, wait out short rate limits, and return the response once it is recorded.

        :param post: Sends the request once.
        :param abort: Aborts it.
        :param record: Records the response, and logs it.
        :param rate_limit_wait: Seconds to wait within the try for rate limits to pass.
        :raises GetimgError: Its message says what happened and whether it was billed.
        """

        def send_once() -> ResponseT:
            with PostponedAlarm(abort) as alarm:
                with self.sending(alarm):
                    response = post()
                record(response)
                return response

        response: ResponseT = wait_out_rate_limits(rate_limit_wait, self._log, self._killed)(send_once)
        return response

    @contextmanager
    def sending(self, alarm: PostponedAlarm | None = None) -> Iterator[None]:
        """
        Record the intent, let the block send the request, and record a failure. The caller records the response.

        :param alarm: Started once the intent is recorded; None in another thread than the main one.
        :raises GetimgError: Its message says what happened and whether it was billed.
        """
        self._ledger.record_intent()
        try:
            if alarm is not None:
                alarm.start()
            if self._killed.is_set():
                raise KilledError("The task was terminated before the request was sent.")
            yield
        except OutcomeUnknownError as error:
            has_rung = alarm is not None and alarm.rang
            is_aborted = has_rung and error.status is None
            failure = _INTERRUPTED.format("AirflowTaskTimeout") if is_aborted else error.message
            self._ledger.record_unknown(failure, error.received)
            if has_rung:
                # Airflow's exception replaces this error, so log what it may have cost.
                self._log.error("%s", self._unknown(OutcomeUnknownError(failure)))
            raise self._unknown(error) from None
        except GetimgError:
            if alarm is not None:
                # If the rollback takes long, the next try merely treats the outcome as unknown.
                alarm.stop()
            self._ledger.rollback()
            raise
        except BaseException as error:
            # Raised from a signal handler: re-raise it unchanged, and log what it may have cost.
            failure = _INTERRUPTED.format(type(error).__name__)
            self._log.error("%s", self._unknown(OutcomeUnknownError(failure)))
            self._ledger.record_unknown(failure)
            raise

    def _unknown(self, error: OutcomeUnknownError) -> OutcomeUnknownError:
        remedy = (
            "A retry sends it again."
            if self._resubmits and not self._ledger.is_last_try
            else self._manual_remedy("perhaps pay twice")
        )
        return OutcomeUnknownError(
            f"{error.message} The request was sent at {self._ledger.sent_at}. {remedy}",
            status=error.status,
            code=error.code,
            param=error.param,
            detail=error.detail,
            retry_after=error.retry_after,
        )

    def _raise_unless_resubmitting(self, error: type[GetimgError], what: str, **bill: Any) -> None:
        if not self._resubmits:
            cost = "pay again" if error is PaidFilesGoneError else "perhaps pay twice"
            raise error(f"{what} {self._manual_remedy(cost)}", **bill)
        cost = "is billed again" if error is PaidFilesGoneError else "may be billed twice"
        self._log.warning(
            "%s on_unknown_outcome is 'resubmit': the request is sent again, and %s.", what, cost
        )

    def _manual_remedy(self, cost: str) -> str:
        return (
            f"To make a new {self.noun}, clear the task; to let retries send such a request again, and {cost}, "
            "set on_unknown_outcome='resubmit'."
        )

    def _log_made(self, generation: Generation, model: str) -> None:
        """Log what was generated, its cost, and anything undocumented in the response."""
        files = len(generation.data)
        ends = [file.deletes_at for file in generation.data if file.deletes_at is not None]
        self._log.info(
            "Generated %s with model %s: %d %s, cost %s, %s.",
            generation.id,
            generation.model or model,
            files,
            "file" if files == 1 else "files",
            _cost(generation),
            f"to be deleted at {min(ends).isoformat()}" if ends else "the API gave no deletion time",
        )
        for oddity in generation.oddities:
            self._log.warning(
                "The response of generation %s is not as documented: %s.", generation.id, oddity
            )


def _files_gone(entry: Entry, generation: Generation) -> str:
    deleted = max(file.deletes_at for file in generation.data if file.deletes_at is not None).isoformat()
    return (
        f"Try {entry.try_number} generated and paid for {generation.id} ({_cost(generation)}), and its files are gone: "
        f"they were deleted at {deleted}."
    )


def _cost(generation: Generation) -> str:
    return "not given by the API" if generation.cost is None else f"{generation.cost} USD"
