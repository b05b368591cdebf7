# SPDX-License-Identifier: Apache-2.0
"""Wait in the triggerer until a video is completed or has failed. Only polls: running twice bills nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_getimg.api.errors import TRANSIENT_ERRORS, GetimgError
from airflow_provider_getimg.durable.video_polling import Polling, VideoLog, VideoWait
from airflow_provider_getimg.hooks.getimg import GetimgHook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_provider_getimg.api.video_states import VideoStates


class GetimgVideoTrigger(BaseTrigger):
    """
    Fires when a video is completed or failed, when the wait is over, or when polling again would be pointless.

    The event is ``wait``, not the polled response: the task itself polls once more, so that no signed URL is stored.

    :param wait: What the task needs to resume.
    :param getimg_conn_id: The getimg.ai connection. Only its id is stored.
    """

    def __init__(self, wait: VideoWait, getimg_conn_id: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wait = wait
        self.getimg_conn_id = getimg_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and the arguments that Airflow stores."""
        return (
            "airflow_provider_getimg.triggers.video.GetimgVideoTrigger",
            {"wait": self.wait, "getimg_conn_id": self.getimg_conn_id},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll every ``poll_interval`` seconds, over connections shared by all triggers in this process."""
        polling = Polling(self.wait["poll_interval"], self.wait["until"])
        # Pause first: the task has just submitted or polled the video. If the connection can't be opened here, the task polls and
        # defers again, which must not become a loop without a pause.
        await asyncio.sleep(polling.pause())
        try:
            async with _shared_states(self.getimg_conn_id) as states:
                await self._poll(states, polling)
        except GetimgError as error:
            self.log.warning("Video %s: %s", self.wait["video_id"], error.message)
        yield TriggerEvent(self.wait)  # type: ignore[no-untyped-call]

    async def _poll(self, states: VideoStates, polling: Polling) -> None:
        video_id = self.wait["video_id"]
        log = VideoLog(video_id, self.wait["started"], self.log)
        while True:
            try:
                video = await states.get(video_id)
            except TRANSIENT_ERRORS as error:
                pause = polling.pause(error)
                log.failed(error, pause)
            else:
                log.state(video)
                if video.is_failed or video.generation is not None:
                    return
                pause = polling.pause()
            if polling.is_over:
                return
            await asyncio.sleep(pause)


class _Shared:
    """A reader of video states, and the number of triggers that use it."""

    def __init__(self, getimg_conn_id: str) -> None:
        # Read the connection once, however many triggers start at the same time, and in an asgiref thread: from any other
        # thread, a request to Airflow's API crashes the triggerer of Airflow 3.1 ("Response read out of order!").
        self.opening = asyncio.ensure_future(sync_to_async(_opened)(getimg_conn_id))
        self.users = 0


_shared: dict[tuple[asyncio.AbstractEventLoop, str], _Shared] = {}


@asynccontextmanager
async def _shared_states(getimg_conn_id: str) -> AsyncIterator[VideoStates]:
    """Share the reader of video states among this process's triggers with the same connection; the last one closes it."""
    key = (asyncio.get_running_loop(), getimg_conn_id)
    if key not in _shared:
        _shared[key] = _Shared(getimg_conn_id)
    shared = _shared[key]
    shared.users += 1
    try:
        # Canceling one trigger meanwhile must not cancel it for the others.
        yield await asyncio.shield(shared.opening)
    finally:
        shared.users -= 1
        if not shared.users:
            del _shared[key]
            with suppress(GetimgError):
                await (await shared.opening).close()


def _opened(getimg_conn_id: str) -> VideoStates:
    return GetimgHook(getimg_conn_id).video_states()
