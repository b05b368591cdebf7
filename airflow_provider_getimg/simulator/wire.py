# SPDX-License-Identifier: Apache-2.0
"""The socket under the server: what ASGI hides from an application, and realistic faults need."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from enum import Enum
from typing import TYPE_CHECKING

from fastapi import Request, Response
from starlette.datastructures import MutableHeaders
from uvicorn.protocols.http.h11_impl import H11Protocol

from airflow_provider_getimg.simulator.faults import BODILESS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import h11
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from airflow_provider_getimg.simulator.faults import Fault
    from airflow_provider_getimg.simulator.media import Content
    from airflow_provider_getimg.simulator.settings import Settings
    from airflow_provider_getimg.simulator.state import Simulator

CHUNK = 128 * 1024
# A slow body is sent in at least this many pieces.
DRIPS = 20
# Seconds to wait for the last bytes of a truncated body to be sent, before resetting the connection instead.
LINGER = 5.0
# Bytes that a wrong Content-Length promises beyond the body.
LENGTH_ERROR = 1024


class ClientConnection:
    """One client's connection.

    ``lost`` is set once it is closed, by either side.
    """

    def __init__(self, transport: asyncio.Transport, http: h11.Connection) -> None:
        self._transport = transport
        self._http = http
        self.lost = asyncio.Event()

    def end_body_by_closing(self) -> None:
        """End a body without a length by closing the connection, as for a client without chunked encoding."""
        self._http.their_http_version = b"1.0"

    async def drop(self) -> None:
        """Close the connection after the bytes already sent, whatever was promised."""
        self._transport.close()
        try:
            async with asyncio.timeout(LINGER):
                await self.lost.wait()
        except TimeoutError:
            self.abort()
            await self.lost.wait()

    def abort(self) -> None:
        """Close the connection immediately."""
        self._transport.abort()


class ConnectionProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol; the application finds its connection in ``scope["state"]["client_connection"]``."""

    client_connection: ClientConnection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the application its connection."""
        super().connection_made(transport)
        # asyncio does this for sockets that it creates. Without it, a body waits 40 ms for the ACK of its headers.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client_connection = ClientConnection(transport, self.conn)
        self.app_state = {**self.app_state, "client_connection": self.client_connection}

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that its connection is gone."""
        super().connection_lost(exc)
        self.client_connection.lost.set()


class WithDate:
    """Middleware that adds a ``Date`` unless a fault has set one; uvicorn would then add a second one.

    With scaled time there is no ``Date``: its whole seconds are too coarse to compute a wait from ``X-RateLimit-Reset``.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and add a ``Date`` to its response if it has none."""

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start" and self._settings.time_scale == 1:
                MutableHeaders(scope=message).setdefault("Date", formatdate(usegmt=True))
            await send(message)

        await self._app(scope, receive, dated)


class DeferredResponse(Response):
    """A response that delegates the whole exchange to one coroutine, which may respond or hang up."""

    def __init__(self, run: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the exchange."""
        await self._run(send)


class Sent(Enum):
    """How much of a response was sent to a client that was still connected."""

    NOTHING = "nothing"
    PART = "part"
    WHOLE = "whole"


@dataclass(frozen=True)
class SimulatedResponse:
    """A response to send; a fault may still interfere.

    :param length: How its length is announced: ``right``, ``padded`` (with a leading zero), ``none`` (the body ends
        with the connection), ``chunked``, or a number, which may be wrong.
    """

    status: int
    content: Content
    headers: dict[str, str] = field(default_factory=dict)
    length: str | int = "right"


async def wait(seconds: float, *events: asyncio.Event) -> None:
    """Wait until one of the events is set, but at most ``seconds``."""
    if seconds <= 0 or any(event.is_set() for event in events):
        return
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


class Responder:
    """Responds to one request, normally or as a fault dictates.

    :param request: The request.
    :param send: The ASGI channel of the response.
    :param simulator: Its shutdown cuts faults short, and its settings scale their times.
    """

    def __init__(self, request: Request, send: Send, simulator: Simulator) -> None:
        self.connection: ClientConnection = request.scope["state"]["client_connection"]
        self._is_head = request.method == "HEAD"
        self._send = send
        self._stopping = simulator.stopping
        self._settings = simulator.settings

    async def respond(self, response: SimulatedResponse, fault: Fault | None) -> Sent:
        """Send the response, or do what the fault dictates if there is one."""
        kind = fault.kind if fault else None
        seconds = self._settings.real(fault.seconds) if fault else 0.0
        if kind != "slow_body":
            await wait(seconds, self.connection.lost, self._stopping)
        if kind in ("hang", "drop_before_billing", "drop_after_billing"):
            await self.connection.drop()
            return Sent.NOTHING
        if kind == "truncate":
            return await self.send(response, cut_at=response.content.length // 2)
        if kind == "wrong_length":
            return await self.send(replace(response, length=response.content.length + LENGTH_ERROR))
        return await self.send(response, duration=seconds if kind == "slow_body" else 0.0)

    async def send(
        self, response: SimulatedResponse, *, cut_at: int | None = None, duration: float = 0.0
    ) -> Sent:
        """Send the response.

        :param cut_at: Hang up after this many bytes of the body.
        :param duration: Seconds to spread the body over.
        """
        if self.connection.lost.is_set():
            return Sent.NOTHING
        length = response.content.length
        announced = response.length if isinstance(response.length, int) else length
        headers = response.headers
        if response.length == "none":
            self.connection.end_body_by_closing()
        elif response.length != "chunked" and response.status not in BODILESS:
            headers = {**headers, "Content-Length": f"{'0' * (response.length == 'padded')}{announced}"}
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": response.status, "headers": raw})
        end = min(length, announced) if cut_at is None else cut_at
        if not self._is_head and not await self._send_body(response.content, end, duration):
            return Sent.PART
        if cut_at is not None or announced > length:
            await self.connection.drop()
            return Sent.PART
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        return Sent.WHOLE

    async def _send_body(self, content: Content, end: int, duration: float) -> bool:
        """Send the body, and return whether the client stayed until its end."""
        size = CHUNK if not duration else max(1, min(CHUNK, content.length // DRIPS))
        clock = asyncio.get_running_loop().time
        began, sent = clock(), 0
        for chunk in content.chunks(size):
            piece = chunk[: end - sent]
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += len(piece)
            # Also lets other requests run: with a fast reader, the transport never pauses.
            await asyncio.sleep(0)
            await wait(
                began + duration * sent / content.length - clock(), self.connection.lost, self._stopping
            )
            if self.connection.lost.is_set():
                return sent >= end
            if sent >= end:
                break
        return True
