# SPDX-License-Identifier: Apache-2.0
"""
The retry decisions by error, in one table.

The ledger, not this table, keeps an image from being paid for twice: a custom policy can change when
and how often a task is retried, but a try that must not pay still won't.

A batch's own attempts are in ``batch/row_steps.py``, a file's in ``s3/copier.py``. Before Airflow 3.3,
``version_compat.with_retry_policy`` applies the policy.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception_type, sleep_using_event, stop_before_delay

from airflow_provider_getimg.version_compat import RetryAction, RetryDecision, RetryPolicy

if TYPE_CHECKING:
    import threading

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.types import Logger
    from tenacity import RetryCallState

#: Bounds, in seconds, of the wait after a 429 that doesn't say how long to wait.
BACKOFF_FIRST = 15.0
BACKOFF_LIMIT = 600.0
#: The shortest wait in seconds after a 429, whatever it says: a server that says 0 must not be hammered.
MIN_WAIT = 1.0
#: Seconds between probes for a free slot: the first delay, the share of the time waited that is added, and the maximum.
PROBE_FIRST, PROBE_SHARE, PROBE_MAX = 0.1, 0.1, 2.0


class GetimgRetryPolicy(RetryPolicy):
    """
    Decide by what an error cost and whether another try can help.

    ======================================  ==================================================
    refused, wrong input or connection,     fail immediately: it would fail again
    price over ``max_cost``, files gone or
    refused, another object at the key, a
    write that S3 will refuse again
    429                                     retry after the time the API asks for, or a growing
                                            delay with jitter (7.5 seconds to 10 minutes)
    outcome unknown                         fail immediately; retry if the operator's
                                            ``on_unknown_outcome`` is ``"resubmit"``
    video failed                            fail immediately; retry if the operator's
                                            ``on_failed_video`` is ``"resubmit"``
    everything else                         retry after the task's own ``retry_delay``
    ======================================  ==================================================

    All retries are within the task's ``retries``. The worker slot is free between tries. To replace the
    policy, set ``retry_policy=`` on the operator.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,
        context: Context | None = None,
    ) -> RetryDecision:
        """Look up the error in the table. The reason is logged and stored with the task instance."""
        from airflow_provider_getimg.api import errors

        name = type(exception).__name__
        match exception:
            case errors.RateLimitError():
                wait = exception.retry_after
                wait = backoff(try_number) if wait is None else max(wait, MIN_WAIT)
                return RetryDecision.retry(timedelta(seconds=wait), reason=f"{name}: rate limited")
            case errors.OutcomeUnknownError():
                if getattr(_task(context), "on_unknown_outcome", "fail") == "resubmit":
                    return RetryDecision.retry(reason=f"{name}: on_unknown_outcome is 'resubmit'")
                return RetryDecision.fail(reason=f"{name}: it may have been billed")
            case errors.VideoFailedError():
                if getattr(_task(context), "on_failed_video", "fail") == "resubmit":
                    return RetryDecision.retry(reason=f"{name}: on_failed_video is 'resubmit'")
                return RetryDecision.fail(reason=f"{name}: another one would be billed")
            case errors.ConnectionUnavailableError():
                # Before ConnectionConfigError, its base.
                return RetryDecision.default()
            case (
                errors.InvalidInputError()
                | errors.ConnectionConfigError()
                | errors.RequestRefusedError()
                | errors.CostLimitError()
                | errors.PaidFilesGoneError()
                | errors.FileGoneError()
                | errors.FileRefusedError()
                | errors.ObjectExistsError()
                | errors.StoreRefusedError()
            ):
                return RetryDecision.fail(reason=f"{name}: another try would fail again")
            case errors.TransferIncompleteError() | errors.BatchIncompleteError():
                # Retry if any failure is worth it, after the longest wait that any of them needs.
                decisions = [
                    self.evaluate(error, try_number, max_tries, context) for error in exception.failures
                ]
                if decisions and all(decision.action is RetryAction.FAIL for decision in decisions):
                    return RetryDecision.fail(reason=f"{name}: another try would fail again")
                delays = [decision.retry_delay for decision in decisions if decision.retry_delay]
                if delays:
                    return RetryDecision.retry(max(delays), reason=f"{name}: rate limited")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return what DAG serialization stores: this policy has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> GetimgRetryPolicy:
        """Build the policy from what :meth:`serialize` returned."""
        return cls()


def wait_out_rate_limits(seconds: float, log: Logger, killed: threading.Event) -> Retrying:
    """
    Return a tenacity ``Retrying`` that repeats a call after a 429, within one try.

    A 429 is not billed, so the call may be repeated. If it would take longer than ``seconds`` in total, the 429 is
    raised for the retry policy, which frees the worker slot meanwhile.

    :param seconds: How long to wait in total; 0 for not at all.
    :param log: Where each wait is logged.
    :param killed: Ends a wait immediately when set.
    """
    from airflow_provider_getimg.api.errors import RateLimitError

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, RateLimitError) else None
        if asked is None:
            return slot_probe_delay(state.seconds_since_start or 0.0)
        return max(asked, MIN_WAIT * state.attempt_number)

    def log_wait(state: RetryCallState) -> None:
        log.info("Rate limited, nothing was billed: retrying in %.1f seconds.", state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception_type(RateLimitError),
        wait=wait,
        stop=stop_before_delay(seconds),
        before_sleep=log_wait,
        sleep=sleep_using_event(killed),
        reraise=True,
    )


def backoff(attempt: int, first: float = BACKOFF_FIRST, limit: float = BACKOFF_LIMIT) -> float:
    """
    Return a wait in seconds that doubles with each attempt up to ``limit``.

    Half of it is random, so that tasks that hit a limit together don't retry together.

    :param attempt: The attempt, from 1.
    """
    full = min(limit, first * 2.0 ** min(attempt - 1, 30))
    return full / 2 + random.uniform(0, full / 2)


def slot_probe_delay(waited: float) -> float:
    """
    Return the seconds until the next probe for a slot, while others use all of the account's concurrent requests.

    A tenth of the time waited so far, randomized: slots are free only for moments, however long a request takes.

    :param waited: Seconds since the first probe.
    """
    return min(PROBE_FIRST + PROBE_SHARE * waited, PROBE_MAX) * random.uniform(0.75, 1.25)


def _task(context: Context | None) -> object:
    return context.get("task") if context else None


RETRY_POLICY = GetimgRetryPolicy()
