# SPDX-License-Identifier: Apache-2.0
"""The handling of a POST, from its arrival to its last byte: the order of checks, billing, the ledger."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from starlette.requests import ClientDisconnect

from airflow_provider_getimg.simulator.auth import check_key
from airflow_provider_getimg.simulator.errors import ApiError, as_json
from airflow_provider_getimg.simulator.faults import Hang, OddResponse, Reply
from airflow_provider_getimg.simulator.fields import MAX_BODY, parse
from airflow_provider_getimg.simulator.image_requests import check
from airflow_provider_getimg.simulator.media import Content
from airflow_provider_getimg.simulator.odd import delivered, odd_body, reply
from airflow_provider_getimg.simulator.wire import Responder, Sent, SimulatedResponse, wait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import Request
    from starlette.types import Send

    from airflow_provider_getimg.simulator.account import Hold
    from airflow_provider_getimg.simulator.faults import Fault
    from airflow_provider_getimg.simulator.image_requests import ImageRequest
    from airflow_provider_getimg.simulator.request_log import Post
    from airflow_provider_getimg.simulator.state import Simulator

# Read and discard up to this much of an oversized body: a client that is still sending can't receive a 413.
MAX_DRAINED = 16 * MAX_BODY


async def take_post(
    simulator: Simulator,
    kind: Literal["image", "video"],
    work: Callable[[Request, Responder, Post], Awaitable[None]],
    request: Request,
    send: Send,
) -> None:
    """Record a POST in the ledger, check its key and do the work; if it is refused, send the refusal."""
    post = simulator.ledger.open(kind)
    responder = Responder(request, send, simulator)
    try:
        check_key(request, simulator.api_key)
        await work(request, responder, post)
    except ApiError as refusal:
        post.end("refused", refusal.status)
        headers = {**json_headers(simulator), **refusal.headers}
        await responder.send(SimulatedResponse(refusal.status, Content.of(as_json(refusal.body)), headers))
    except ClientDisconnect:
        post.end("dropped", None)


async def generate(simulator: Simulator, request: Request, responder: Responder, post: Post) -> None:
    """Make one image. Checks, in order: size, JSON, parameters, content policy, balance, limits."""
    fields = parse(await read_body(request))
    post.note(fields)
    image_request = check(fields, simulator.blocked_words)
    hold = simulator.account.hold(image_request.price)
    try:
        with simulator.limits.admit():
            # Only a request that would have been served uses up a fault.
            fault = simulator.faults.take("image")
            if fault is None or fault.bills:
                # Requests can't be canceled: a client that disconnects now pays anyway.
                forgotten = simulator.forgotten
                await wait(simulator.settings.image_seconds(), forgotten, simulator.stopping)
                if forgotten.is_set():
                    raise ClientDisconnect
                post.billed = hold.charge()
            else:
                hold.release()
            good = partial(_completed, simulator, request, post, image_request, hold, fault)
            await respond(simulator, responder, post, fault, good)
    finally:
        hold.release()


async def respond(
    simulator: Simulator,
    responder: Responder,
    post: Post,
    fault: Fault | None,
    good: Callable[[], Awaitable[SimulatedResponse]],
) -> None:
    """Respond to a POST, normally or as its fault dictates, and record the outcome."""
    if isinstance(fault, Hang):
        post.end("hung", None)
        await responder.respond(SimulatedResponse(200, Content.of(b"")), fault)
        return
    if isinstance(fault, Reply):
        limits = simulator.limits.headers() if fault.kind == "status" else {}
        sent = await responder.respond(reply(fault, limits), fault)
        post.end("dropped" if fault.bills else "refused", None if sent is Sent.NOTHING else fault.status)
        return
    response = await good()
    sent = await responder.respond(response, fault)
    outcome = {Sent.NOTHING: "dropped", Sent.PART: "truncated", Sent.WHOLE: "delivered"}[sent]
    post.end(outcome, None if sent is Sent.NOTHING else response.status)


async def _completed(
    simulator: Simulator,
    request: Request,
    post: Post,
    image_request: ImageRequest,
    hold: Hold,
    fault: Fault | None,
) -> SimulatedResponse:
    settings, media = simulator.settings, simulator.media
    lifetime = settings.real(settings.media_lifetime)
    file = media.publish(post.id, image_request.picture(), lifetime, settings.file_size)
    item = partial(media.item, file, str(request.base_url))
    good = {
        "id": post.id,
        "status": "completed",
        "model": image_request.model.id,
        "data": [item(0)],
        "usage": {
            "total_cost": float(hold.amount),
            "unit_price": float(hold.amount),
            "quantity": 1,
            "billable_unit": "image",
        },
    }
    headers = json_headers(simulator)
    if isinstance(fault, OddResponse):
        body = Content.of(odd_body(fault, good, item))
        return await delivered(fault, SimulatedResponse(fault.status, body, headers))
    return SimulatedResponse(200, Content.of(as_json(good)), headers)


def json_headers(simulator: Simulator) -> dict[str, str]:
    """Return the headers of every JSON response to a generation."""
    return {"Content-Type": "application/json", **simulator.limits.headers()}


async def read_body(request: Request) -> bytes:
    """Read the body, or refuse it with a 413 once the client has sent all of it."""
    kept, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY:
            kept += chunk
        elif size > MAX_DRAINED:
            break
        else:
            kept.clear()
    if size > MAX_BODY:
        raise ApiError(413, f"The request body is larger than {MAX_BODY // 2**20} MiB.")
    return bytes(kept)
