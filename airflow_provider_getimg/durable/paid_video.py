# SPDX-License-Identifier: Apache-2.0
"""A video that is paid for at most once across the tries of a task: once submitted, it is only polled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.api.errors import Billed, VideoFailedError
from airflow_provider_getimg.api.responses import one_line
from airflow_provider_getimg.api.signed_urls import without_query
from airflow_provider_getimg.durable.paid_request import PaidRequest

if TYPE_CHECKING:
    from airflow_provider_getimg.api.client import GetimgClient
    from airflow_provider_getimg.api.requests import VideoRequest
    from airflow_provider_getimg.api.types import Generation, Video
    from airflow_provider_getimg.durable.ledger import Entry

FAILED_VIDEO = ("fail", "resubmit")
# The maximum length of the API's text in a failure message.
_REASON_CHARACTERS = 500


class PaidVideo(PaidRequest):
    """
    A paid video. The response to its request holds an id, which is polled for the files.

    :param on_failed_video: ``fail`` or ``resubmit``.
    """

    noun = "video"

    def __init__(self, *args: Any, on_failed_video: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self._resubmits_failed = on_failed_video == "resubmit"
        self._id = ""
        #: The response, once the video is completed.
        self.generation: Generation | None = None

    @property
    def id(self) -> str:
        """The video's id; empty before it is submitted."""
        return self._id

    @property
    def address(self) -> str:
        """Where a user finds its entry in the task's state."""
        return self._ledger.address

    def find(self) -> bool:
        """
        Find the video that an earlier try submitted, and return whether there is one.

        :raises OutcomeUnknownError: Under ``fail``: an earlier try sent the request and saw no response.
        :raises VideoFailedError: Under ``fail``: the API could not generate it.
        :raises PaidFilesGoneError: Under ``fail``: it was paid for, and its files are gone.
        :raises LedgerError: It is unknown what earlier tries did.
        """
        entry = self._previous()
        if entry is None:
            return False
        if entry.state == "failed":
            self._check_may_resubmit(entry)
            return False
        if entry.generation is not None:
            self.generation = self._reuse(entry, entry.generation)
        else:
            self._log.info(
                "Try %d submitted video %s %s ago: waiting for it. Nothing is billed again.",
                entry.try_number,
                entry.video_id,
                entry.age,
            )
        self._id = entry.video_id or ""
        return True

    def resume(self, video_id: str) -> None:
        """Continue with a video that this same try submitted."""
        self._id = video_id
        self.generation = self._ledger.resume(video_id).generation

    def submit(self, client: GetimgClient, request: VideoRequest, rate_limit_wait: float) -> None:
        """
        Send the request, wait out short rate limits, and return once the id is recorded.

        :param rate_limit_wait: Seconds to wait within the try for rate limits to pass.
        :raises GetimgError: Its message says what happened and whether it was billed.
        """

        def record(video: Video) -> None:
            self._ledger.record_video(video.id)
            self._log.info("Submitted video %s with model %s.", video.id, request.model)
            for oddity in video.oddities:
                self._log.warning("The response of video %s is not as documented: %s.", video.id, oddity)

        video = self._send(lambda: client.create_video(request), client.abort, record, rate_limit_wait)
        self._id = video.id

    def poll(self, client: GetimgClient) -> Video:
        """
        Poll the video once and record its outcome. :attr:`generation` is the response once the video is completed.

        :raises VideoFailedError: The API could not generate it.
        :raises GetimgError: It could not be polled.
        """
        video = client.get_video(self._id)
        if video.is_failed:
            reason = one_line(video.failure, _REASON_CHARACTERS, without_query)
            failure = f"getimg.ai could not generate video {video.id} ({reason})."
            self._ledger.record_failed(failure)
            raise self._failed(failure, **_bill(video))
        if video.generation is not None:
            self._ledger.record_response(video.generation.to_json())
            self.generation = video.generation
            self._log_made(video.generation, "unknown")
        return video

    def _check_may_resubmit(self, entry: Entry) -> None:
        failure = entry.failure or f"getimg.ai could not generate video {entry.video_id}."
        if not self._resubmits_failed:
            raise self._failed(failure)
        self._log.warning("%s on_failed_video is 'resubmit': it is submitted again now, and billed.", failure)

    def _failed(self, failure: str, **bill: Any) -> VideoFailedError:
        remedy = (
            "A retry submits it again."
            if self._resubmits_failed and not self._ledger.is_last_try
            else "To make a new one, clear the task; to let retries submit a failed video again, and pay for it, set "
            "on_failed_video='resubmit'."
        )
        return VideoFailedError(f"{failure} {remedy}", **bill)


def _bill(video: Video) -> dict[str, Any]:
    if video.cost is None:
        return {}
    billed: Billed = "yes" if video.cost else "no"
    return {"billed": billed, "cost": video.cost, "generation_ids": [video.id] if video.cost else []}
