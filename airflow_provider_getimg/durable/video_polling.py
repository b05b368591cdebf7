# SPDX-License-Identifier: Apache-2.0
"""Decides when to poll a video again, for both the worker and the triggerer."""

from __future__ import annotations

import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from airflow_provider_getimg.api.errors import GetimgError, VideoPendingError
from airflow_provider_getimg.retry import MIN_WAIT, backoff

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from airflow_provider_getimg.api.types import Video

#: The least ``poll_interval``, in seconds: 0 would poll without a pause.
MIN_POLL_INTERVAL = 0.01
# Seconds between log lines on a video whose state has not changed.
_LOG_INTERVAL = 60.0
# The longest wait after a failed poll, unless twice poll_interval, or the API's Retry-After, is longer.
_BACKOFF_LIMIT = 60.0


class VideoWait(TypedDict):
    """
    What a task passes to the triggerer and gets back, as plain JSON.

    :param video_id: The video's id.
    :param fingerprint: Digest of its request.
    :param started: The Unix time at which the wait began.
    :param until: The Unix time at which it ends.
    :param poll_interval: Seconds between polls.
    :param record: The request, as recorded in XCom.
    """

    video_id: str
    fingerprint: str
    started: float
    until: float
    poll_interval: float
    record: dict[str, Any]


class Polling:
    """
    The pauses between the polls of one video.

    The first pause is one to two intervals. It is random because a starting triggerer picks up all its videos at the same moment
    and must not poll a thousand at once. It is no shorter because Airflow may take ``[workers] min_heartbeat_interval``,
    5 seconds, to notice that the process that deferred the task has exited, and fails a task that has resumed by then
    (apache/airflow#72716).

    :param poll_interval: Seconds between polls, randomized by up to a fifth either way.
    :param until: The Unix time at which the wait ends.
    """

    def __init__(self, poll_interval: float, until: float) -> None:
        self._interval = poll_interval
        self._until = until
        self._failed = 0
        self._range = (1.0, 2.0)

    @property
    def is_over(self) -> bool:
        """Whether the wait is over."""
        return time.time() >= self._until

    def pause(self, error: GetimgError | None = None) -> float:
        """
        Return the seconds until the next poll.

        :param error: The last poll's error, one of :data:`~airflow_provider_getimg.api.errors.TRANSIENT_ERRORS`; None without one.
        """
        if error is None:
            self._failed = 0
            wanted = self._interval * random.uniform(*self._range)
        else:
            self._failed += 1
            wanted = max(
                backoff(self._failed, 2 * self._interval, max(_BACKOFF_LIMIT, 2 * self._interval)),
                error.retry_after or 0.0,
                MIN_WAIT,
            )
        self._range = (0.8, 1.2)
        return max(0.0, min(wanted, self._until - time.time()))


class VideoLog:
    """
    Logs the progress of a video: each new state, and once a minute.

    :param video_id: The video's id.
    :param started: The Unix time at which the wait began.
    :param log: The task's log.
    """

    def __init__(self, video_id: str, started: float, log: Logger) -> None:
        self._id = video_id
        self._started = started
        self._log = log
        self._status: str | None = None
        self._logged = 0.0

    def state(self, video: Video) -> None:
        """Log the state, if it is new or the last line is old."""
        now = time.time()
        if video.status == self._status and now - self._logged < _LOG_INTERVAL:
            return
        self._status, self._logged = video.status, now
        self._log.info("Video %s is %s after %s.", self._id, self._status, self._waited)

    def failed(self, error: GetimgError, pause: float) -> None:
        """Log a failed poll."""
        self._log.warning("Video %s: %s Polling again in %.1f seconds.", self._id, error.message, pause)

    def refused_error(self, error: GetimgError, address: str) -> GetimgError:
        """
        Return the error for a poll that would be refused again; the video itself may be billed.

        :param address: Where a user finds its entry in the task's state.
        """
        return type(error)(
            f"Video {self._id} was submitted, and its state can't be read: {error.message} Once that is fixed, clear the task: it "
            f"resumes waiting for this video and doesn't submit another. To abandon it and submit another, delete {address} first.",
            billed="unknown",
            status=error.status,
            code=error.code,
            param=error.param,
            detail=error.detail,
        )

    def pending_error(self) -> VideoPendingError:
        """Return the error for a wait that has ended."""
        return VideoPendingError(
            f"Video {self._id} is {self._status or 'in an unknown state'} after {self._waited}, and the task's timeout has expired. A "
            "retry or a Clear resumes waiting for it and doesn't submit another."
        )

    @property
    def _waited(self) -> str:
        return str(timedelta(seconds=round(time.time() - self._started)))
