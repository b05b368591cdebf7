# SPDX-License-Identifier: Apache-2.0
"""A reverse proxy for an S3 server that injects faults into chosen requests, and records all requests."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self
from xml.sax.saxutils import escape

import aiohttp
from aiohttp import web
from yarl import URL

from devstack.network import LOOPBACK
from tests.support.s3_requests import ProxiedRequest, S3Fault, open_uploads

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping, Sequence

__all__ = ["ProxiedRequest", "S3Fault", "S3FaultProxy", "open_uploads"]

HOP_BY_HOP = frozenset({"connection", "expect", "keep-alive", "te", "transfer-encoding", "upgrade"})


class S3FaultProxy:
    """An HTTP/1.1 reverse proxy on a free loopback port, in its own thread. Use it as a context manager.

    Requests pass through unchanged, including ``Host``, which is part of the signature; bodies are streamed.

    :param upstream_url: The S3 server, such as ``SeaweedFS().endpoint_url``.
    :param tls: For TLS with the clients. Default: unencrypted.
    """

    def __init__(self, upstream_url: str, *, tls: ssl.SSLContext | None = None) -> None:
        self.url = ""
        self._tls = tls
        self._upstream_url = upstream_url.rstrip("/")
        self._faults: list[S3Fault] = []
        self._requests: list[ProxiedRequest] = []
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._session: aiohttp.ClientSession
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    @property
    def requests(self) -> list[ProxiedRequest]:
        """All requests since the start or the last :meth:`clear`, in the order of their arrival."""
        with self._lock:
            return list(self._requests)

    @property
    def faults(self) -> list[S3Fault]:
        """The faults that are still due."""
        with self._lock:
            return list(self._faults)

    def operations(self, key_contains: str = "") -> list[str]:
        """Return the names of the requested operations, in order."""
        return [request.operation for request in self.requests if key_contains in request.key]

    def set_faults(self, faults: Sequence[dict[str, Any]]) -> None:
        """Inject these faults, instead of any that are still due; see :class:`S3Fault` for the fields.

        A request gets one fault at most: the first in the list that matches.

        :raises ValueError: One of them is invalid; then none is set.
        """
        checked = [S3Fault.of(fault) for fault in faults]
        with self._lock:
            self._faults = checked

    def clear(self) -> None:
        """Drop the faults that are still due, and the recorded requests."""
        with self._lock:
            self._faults = []
            self._requests = []

    def aws_connection(self, direct: str) -> str:
        """Return a value for ``AIRFLOW_CONN_AWS_DEFAULT`` that goes through the proxy.

        :param direct: The value for the server itself.
        """
        connection = json.loads(direct)
        connection["extra"]["endpoint_url"] = self.url
        return json.dumps(connection)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10) or not self.url:
            raise RuntimeError("The fault proxy did not start.")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        # A new connection for each request: one that a fault has broken must not be reused.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        server = web.Server(self._handle, access_log=None, auto_decompress=False)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as self._session:
            runner = web.ServerRunner(server, shutdown_timeout=0.1)
            await runner.setup()
            try:
                site = web.TCPSite(runner, LOOPBACK, 0, ssl_context=self._tls)
                await site.start()
                scheme = "http" if self._tls is None else "https"
                self.url = f"{scheme}://{LOOPBACK}:{runner.addresses[0][1]}"
                self._ready.set()
                await self._stopping.wait()
            finally:
                self._ready.set()
                await runner.cleanup()

    def _record(self, request: web.BaseRequest) -> tuple[ProxiedRequest, S3Fault | None]:
        """Record the request, and return it with its fault, which then counts as used."""
        record = ProxiedRequest.of(request.method, request.raw_path, request.headers)
        with self._lock:
            self._requests.append(record)
            for position, fault in enumerate(self._faults):
                if not fault.matches(record):
                    continue
                if fault.skip:
                    self._faults[position] = replace(fault, skip=fault.skip - 1)
                    continue
                if fault.times > 1:
                    self._faults[position] = replace(fault, times=fault.times - 1)
                else:
                    del self._faults[position]
                record.fault = fault.kind
                return record, fault
        return record, None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        record, fault = self._record(request)
        try:
            if fault is not None and fault.kind == "status":
                return await self._refuse(request, record, fault)
            if fault is not None and fault.kind == "hang":
                async for _ in _body(request, record):
                    pass
                await self._wait(request, 3600.0 if fault.seconds is None else fault.seconds)
                return _hang_up(request)
            return await self._forward(request, record, fault)
        except (aiohttp.ClientError, OSError):
            # One side is gone, or the fault is a reset: end the other side's connection as well.
            return _hang_up(request, reset=True)

    async def _refuse(
        self, request: web.BaseRequest, record: ProxiedRequest, fault: S3Fault
    ) -> web.StreamResponse:
        status, code = fault.response
        if not _expects_continue(request):
            async for _ in _body(request, record):
                pass
        record.status = status
        elements = {
            "Code": code,
            "Message": fault.message or f"The fault proxy plays {code}.",
            "Resource": record.path,
            "RequestId": "fault",
            **fault.elements,
        }
        inner = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in elements.items())
        text = "" if fault.is_empty else f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'
        response = web.Response(status=status, text=text, content_type="application/xml")
        if _expects_continue(request):
            # No 100 was sent: if the client sends the body anyway, it must not be read as the next request.
            response.force_close()
        return response

    async def _forward(
        self, request: web.BaseRequest, record: ProxiedRequest, fault: S3Fault | None
    ) -> web.StreamResponse:
        kind = fault.kind if fault is not None else None
        seconds = 2.0 if fault is None or fault.seconds is None else fault.seconds
        length = request.content_length or 0
        if kind == "reset_mid_upload" and not request.body_exists:
            return _hang_up(request, reset=True)
        if kind == "slow" and not length:
            await self._wait(request, seconds)
        upload = _body(
            request,
            record,
            cut_at=length // 2 if kind == "reset_mid_upload" else None,
            seconds_per_byte=seconds / length if kind == "slow" and length else 0.0,
            corrupts=kind == "corrupt",
        )
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
        async with self._session.request(
            request.method,
            # As received: another encoding of the key would break the signature.
            URL(self._upstream_url + request.raw_path, encoded=True),
            headers=headers,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            data=upload if request.body_exists else None,
            expect100=_expects_continue(request),
            allow_redirects=False,
        ) as upstream:
            record.upstream_status = upstream.status
            if kind == "lost_response":
                # Only a server that has sent its whole response is certain to have done its work.
                async for _ in upstream.content.iter_any():
                    pass
                return _hang_up(request)
            changed = fault.response_headers if fault is not None else {}
            return await self._relay(
                request, record, upstream, changed=changed, cut=kind == "reset_mid_response"
            )

    async def _relay(
        self,
        request: web.BaseRequest,
        record: ProxiedRequest,
        upstream: aiohttp.ClientResponse,
        *,
        changed: Mapping[str, str | None],
        cut: bool,
    ) -> web.StreamResponse:
        length = 0 if request.method == "HEAD" else upstream.content_length
        if cut and not length:
            await upstream.read()
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 200")
            return _hang_up(request, reset=True)
        response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
        for name, value in upstream.headers.items():
            if name.lower() not in HOP_BY_HOP:
                response.headers.add(name, value)
        for name, changed_value in changed.items():
            response.headers.popall(name, None)
            if changed_value is not None:
                response.headers[name] = changed_value
        if request.body_exists and not request.content.is_eof():
            # The server responded before it had the whole body: the rest must not be read as the next request.
            response.force_close()
        record.status = None if cut else upstream.status
        await response.prepare(request)
        left = length // 2 if cut and length else None
        async for chunk in upstream.content.iter_any():
            await response.write(chunk[:left])
            if left is not None and (left := left - len(chunk)) <= 0:
                return _hang_up(request, reset=True)
        await response.write_eof()
        return response

    async def _wait(self, request: web.BaseRequest, seconds: float) -> None:
        """Wait for some seconds, or until the client or the proxy is gone."""
        end = self._loop.time() + seconds
        while self._loop.time() < end and not self._stopping.is_set():
            if request.transport is None or request.transport.is_closing():
                return
            await asyncio.sleep(min(0.05, max(0.0, end - self._loop.time())))


def _expects_continue(request: web.BaseRequest) -> bool:
    return request.headers.get("Expect", "").lower() == "100-continue"


async def _body(
    request: web.BaseRequest,
    record: ProxiedRequest,
    *,
    cut_at: int | None = None,
    seconds_per_byte: float = 0.0,
    corrupts: bool = False,
) -> AsyncIterator[bytes]:
    """Yield the request's body, after a 100 response if the client expects one.

    :param cut_at: Reset the connection after this many bytes.
    :param corrupts: Invert the bits of the first byte.
    """
    if _expects_continue(request) and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    async for chunk in request.content.iter_any():
        piece = chunk if cut_at is None else chunk[: cut_at - record.body_bytes]
        if corrupts and piece and not record.body_bytes:
            piece = bytes([piece[0] ^ 0xFF]) + piece[1:]
        record.body_bytes += len(piece)
        if piece:
            yield piece
        if cut_at is not None and record.body_bytes >= cut_at:
            raise ConnectionResetError("The fault proxy breaks the upload off.")
        if seconds_per_byte:
            await asyncio.sleep(len(piece) * seconds_per_byte)


def _hang_up(request: web.BaseRequest, *, reset: bool = False) -> web.StreamResponse:
    """Close the client's connection, with an RST if ``reset``, and return a response that is not sent."""
    transport = request.transport
    if transport is not None:
        if reset:
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        else:
            transport.close()
    return web.Response()
