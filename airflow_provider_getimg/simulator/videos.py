# SPDX-License-Identifier: Apache-2.0
"""Videos: accepted immediately, pending for a while, then completed or failed."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.simulator.errors import ApiError, as_json
from airflow_provider_getimg.simulator.faults import FailedVideo, OddResponse
from airflow_provider_getimg.simulator.fields import parse
from airflow_provider_getimg.simulator.generations import json_headers, read_body, respond
from airflow_provider_getimg.simulator.media import Content
from airflow_provider_getimg.simulator.odd import delivered, odd_body
from airflow_provider_getimg.simulator.video_requests import check
from airflow_provider_getimg.simulator.wire import SimulatedResponse, wait

if TYPE_CHECKING:
    from fastapi import Request

    from airflow_provider_getimg.simulator.account import Hold
    from airflow_provider_getimg.simulator.faults import Fault
    from airflow_provider_getimg.simulator.media import MediaFile
    from airflow_provider_getimg.simulator.request_log import Post
    from airflow_provider_getimg.simulator.state import Simulator
    from airflow_provider_getimg.simulator.video_requests import VideoRequest
    from airflow_provider_getimg.simulator.wire import Responder


@dataclass
class Video:
    """An accepted video. It is pending until it has a file or a failure."""

    id: str
    request: VideoRequest
    file: MediaFile | None = None
    failure: FailedVideo | None = None
    making: asyncio.Task[None] | None = field(default=None, repr=False)

    def public(self, simulator: Simulator, base_url: str) -> dict[str, Any]:
        """Return its state as the API returns it."""
        if self.failure is not None:
            error = {"code": self.failure.code, "message": self.failure.message}
            failed = {"id": self.id, "status": "failed", "error": error}
            return failed | {"usage": self._usage()} if self.failure.billed else failed
        if self.file is None:
            return {"id": self.id, "status": "pending"}
        return {
            "id": self.id,
            "status": "completed",
            "model": self.request.model.id,
            "data": [simulator.media.item(self.file, base_url)],
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "total_cost": float(self.request.price),
            "unit_price": float(self.request.second_price),
            "quantity": self.request.seconds,
            "billable_unit": "video_second",
        }


async def submit(simulator: Simulator, request: Request, responder: Responder, post: Post) -> None:
    """Accept one video. Checks, in order: size, JSON, parameters, content policy, balance, limits."""
    fields = parse(await read_body(request))
    post.note(fields)
    video_request = check(fields, simulator.blocked_words)
    with ExitStack() as held:
        hold = simulator.account.hold(video_request.price)
        held.callback(hold.release)
        # A pending video counts as a running request.
        held.enter_context(simulator.limits.admit())
        fault = simulator.faults.take("video")
        if fault is None or fault.bills:
            post.seconds = video_request.seconds
            video = Video(post.id, video_request)
            simulator.videos[post.id] = video
            failure = fault if isinstance(fault, FailedVideo) else None
            # From here on, the task owns the hold and the concurrency slot, whatever happens to the response.
            video.making = asyncio.create_task(_make(simulator, video, post, hold, held.pop_all(), failure))
        response = partial(_accepted, simulator, request, post, fault)
        await respond(simulator, responder, post, fault, response)


async def _make(
    simulator: Simulator,
    video: Video,
    post: Post,
    hold: Hold,
    held: ExitStack,
    failure: FailedVideo | None,
) -> None:
    with held:
        await wait(simulator.settings.real(simulator.settings.video_latency), simulator.stopping)
        if failure is None or failure.billed:
            post.billed = hold.charge()
        if failure is not None:
            video.failure = failure
            return
        settings = simulator.settings
        lifetime = settings.real(settings.media_lifetime)
        video.file = simulator.media.publish(video.id, video.request.clip(), lifetime, settings.file_size)


async def forget(simulator: Simulator) -> None:
    """Delete all videos. Those still in progress are not billed, and free their concurrency slots."""
    making = [video.making for video in simulator.videos.values() if video.making is not None]
    simulator.videos.clear()
    for task in making:
        task.cancel()
    await asyncio.gather(*making, return_exceptions=True)


async def _accepted(
    simulator: Simulator, request: Request, post: Post, fault: Fault | None
) -> SimulatedResponse:
    return await video_response(simulator, request, {"id": post.id, "status": "pending"}, fault, 202)


def state(simulator: Simulator, request: Request, video_id: str) -> dict[str, Any]:
    """Return the state of a video, or refuse with a 404."""
    video = simulator.videos.get(video_id)
    if video is None:
        raise ApiError(404, f"Video '{video_id}' was not found.")
    return video.public(simulator, str(request.base_url))


async def video_response(
    simulator: Simulator, request: Request, good: dict[str, Any], fault: Fault | None, status: int
) -> SimulatedResponse:
    """Return the response, as changed by the fault if it is an odd response."""
    headers = json_headers(simulator)
    if not isinstance(fault, OddResponse):
        return SimulatedResponse(status, Content.of(as_json(good)), headers)

    def item(index: int) -> dict[str, Any]:
        files = good.get("data") or [{"url": f"{request.base_url}v2/downloads/{good['id']}/{index}"}]
        return dict(files[0])

    return await delivered(
        fault, SimulatedResponse(fault.status, Content.of(odd_body(fault, good, item)), headers)
    )
