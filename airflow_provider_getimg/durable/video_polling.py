# SPDX-License-Identifier: Apache-2.0
"""When to poll a video again: one decision for the worker and the triggerer."""

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

# Seconds between two lines of the log on a video that is still being made.
_LOG_INTERVAL = 60.0
# The longest wait after a question that failed, unless poll_interval is longer.
_BACKOFF_LIMIT = 60.0


class VideoWait(TypedDict):
    """
    What a task hands to the triggerer and gets back, as plain JSON.

    :param video_id: The video.
    :param fingerprint: Of its request.
    :param started: The Unix time at which the wait began.
    :param until: The Unix time at which it is over.
    :param poll_interval: Seconds between two polls.
    :param record: The request, as it is recorded.
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

    The first pause is one to two intervals. At random, since a triggerer that starts takes up all its videos at the same moment, and
    is not to poll a thousand at once. And not shorter, since Airflow may take ``[workers] min_heartbeat_interval``, 5 seconds, to
    notice that the process which deferred the task has ended, and fails a task that has resumed by then (apache/airflow#72716).

    :param poll_interval: Seconds between two polls, a fifth more or less at random.
    :param until: The Unix time at which the wait is over.
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

        :param error: Why the last poll failed, one of :data:`~airflow_provider_getimg.api.errors.TRANSIENT_ERRORS`; None if it didn't.
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
    What is said of a video that is being made: each new state, and once a minute.

    :param video_id: The video.
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
        """Log a state, if it is new or the last line is old."""
        now = time.time()
        if video.status == self._status and now - self._logged < _LOG_INTERVAL:
            return
        self._status, self._logged = video.status, now
        self._log.info("Video %s is %s after %s.", self._id, self._status, self._waited)

    def failed(self, error: GetimgError, pause: float) -> None:
        """Log a poll that got no response."""
        self._log.warning("Video %s: %s Polling again in %.1f seconds.", self._id, error.message, pause)

    def refused(self, error: GetimgError, address: str) -> GetimgError:
        """
        Return the error of a poll that would be refused again, with what the video itself may cost.

        :param address: How a user finds its entry in the task's state.
        """
        return type(error)(
            f"Video {self._id} was submitted, and its state can't be read: {error.message} Once that is fixed, clear the task: it "
            f"goes on waiting for this video and submits no other. To give it up and submit another, delete {address} first.",
            billed="unknown",
            status=error.status,
            code=error.code,
            param=error.param,
            detail=error.detail,
        )

    def still_pending(self) -> VideoPendingError:
        """Return the error for the end of the wait."""
        return VideoPendingError(
            f"Video {self._id} is {self._status or 'in an unknown state'} after {self._waited}, and the task's timeout is over. A "
            "retry, or a Clear, goes on waiting for it and submits no other."
        )

    @property
    def _waited(self) -> str:
        return str(timedelta(seconds=round(time.time() - self._started)))
