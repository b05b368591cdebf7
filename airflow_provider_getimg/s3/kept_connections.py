# SPDX-License-Identifier: Apache-2.0
"""
Keep-alive connections for downloads.

A new TLS connection costs two round trips before the request, and the handshake's CPU time. A download is free and may be
repeated, so it may be sent over a connection that the server closes at that moment. A generation may not: each has its own
connection (see :class:`~airflow_provider_getimg.api.transport.Transport`).
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any

import httpcore
import httpx

from airflow_provider_getimg.api.transport import REUSE_EVENT, ROUTE_EVENT, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_getimg.api.proxies import Proxy

# Shorter than servers and NATs keep connections: a request over one that was silently dropped would wait in vain.
_KEPT_SECONDS = 15.0
_CHUNK_BYTES = 256 * 1024
_LENGTH = b"Content-Length: "
_NEW_STREAMS = (".connect_tcp.complete", ".start_tls.complete")

_Origin = tuple["Proxy | None", str, str, "int | None"]


class KeptConnections(Transport):
    """
    Sends each request over a connection that no other request is using: an idle one, or a new one.

    :param proxy: URL of the getimg connection's proxy, if it has one.
    :param max_idle: The maximum number of idle connections to keep.
    """

    _limits = httpx.Limits(max_connections=None, max_keepalive_connections=1, keepalive_expiry=_KEPT_SECONDS)

    def __init__(self, proxy: str | None, max_idle: int) -> None:
        super().__init__(proxy)
        self._max_idle = max_idle
        self._idle: list[_Connection] = []
        self._is_closed = False

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        super().close()

    def _send_through(self, request: httpx.Request, proxy: Proxy | None) -> httpx.Response:
        origin = (proxy, request.url.scheme, request.url.host, request.url.port)
        if (connection := self._take_idle(origin)) is not None:
            try:
                return connection.send(request, self._release)
            except (httpx.NetworkError, httpx.RemoteProtocolError, OSError):
                # The server closed the idle connection: use a new one. If the watch cut it, this call raises.
                request.extensions["trace"](ROUTE_EVENT, {"proxy": proxy})
        connection = _Connection(origin, self._build(proxy, request.url.scheme == "https"))
        return connection.send(request, self._release)

    def _take_idle(self, origin: _Origin) -> _Connection | None:
        with self._lock:
            for connection in reversed(self._idle):
                if connection.origin == origin:
                    self._idle.remove(connection)
                    return connection
        return None

    def _release(self, connection: _Connection) -> None:
        with self._lock:
            self._idle.append(connection)
            surplus = self._idle if self._is_closed else self._idle[: -self._max_idle]
            self._idle = self._idle[len(surplus) :]
        for each in surplus:
            each.close()


class _Connection:
    """
    One connection: a pool that serves one request at a time.

    :param origin: What it connects to.
    :param transport: The pool.
    """

    def __init__(self, origin: _Origin, transport: httpx.HTTPTransport) -> None:
        self.origin = origin
        self.close = transport.close
        self._transport = transport
        self._stream: httpcore.NetworkStream | None = None
        self._head = _Head()

    def send(self, request: httpx.Request, give_back: Callable[[_Connection], None]) -> httpx.Response:
        """
        Send a request.

        :param give_back: Called once the whole response has been read.
        """
        watch = request.extensions["trace"]

        def trace(name: str, info: dict[str, Any]) -> None:
            watch(name, info)
            if name.endswith((*_NEW_STREAMS, REUSE_EVENT)):
                self._head = _Head()
                self._head.attach(info["return_value"])

        request.extensions = {**request.extensions, "trace": trace}
        try:
            if self._stream is not None:
                # Drop the last response's reader: each response gets a new one.
                vars(self._stream).pop("read", None)
                trace(REUSE_EVENT, {"url": request.url, "return_value": self._stream})
            response = self._transport.handle_request(request)
        except BaseException:
            self.close()
            raise
        finally:
            request.extensions = {**request.extensions, "trace": watch}
        self._stream = response.extensions["network_stream"]
        if self._head.length:
            response.headers["Content-Length"] = str(self._head.length)
        timeout = request.extensions["timeout"]["read"]
        response.stream = _Body(
            response.stream,  # type: ignore[arg-type]
            self._head.body(self._stream, timeout),
            lambda is_whole: give_back(self) if is_whole else self.close(),
        )
        return response


class _Head:
    """
    Hides the body of a response from httpx, if its length is known.

    httpx parses a body in small pieces, each through several layers of Python: half of a copy's CPU time. A body of known
    length needs no parsing: httpx sees an empty body, and the real one is read straight from the connection.
    """

    def __init__(self) -> None:
        self._is_read = False
        self._begun = b""
        #: Of the body, in bytes; 0 if httpx reads it.
        self.length = 0

    def attach(self, stream: httpcore.NetworkStream) -> None:
        """Intercept what httpx reads from a stream."""
        read = stream.read

        def read_head(max_bytes: int, timeout: float | None = None) -> bytes:
            received = read(max_bytes, timeout)
            if not self._is_read and received.startswith(b"HTTP/"):
                self._is_read = True
                return self._without_body(received)
            return received

        stream.read = read_head  # type: ignore[method-assign]

    def _without_body(self, received: bytes) -> bytes:
        """Cut the body off the first bytes, which hold the whole head as ResponseHeads returns it, with the length last."""
        head, end, begun = received.partition(b"\r\n\r\n")
        others, _, last = head.rpartition(b"\r\n")
        if not end or not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 206")) or not last.startswith(_LENGTH):
            return received
        self.length, self._begun = int(last.removeprefix(_LENGTH)), begun
        return others + b"\r\n" + _LENGTH + b"0" + end

    def body(self, stream: httpcore.NetworkStream, timeout: float | None) -> Iterator[bytes]:
        """
        Yield the bytes of the body; fewer if the connection ends early.

        :raises httpx.TransportError: The connection broke.
        """
        begun, self._begun = self._begun[: self.length], b""
        if begun:
            yield begun
        left = self.length - len(begun)
        if not left:
            return
        buffer = memoryview(bytearray(min(left, _CHUNK_BYTES)))
        receive = _receiver(stream, timeout)
        try:
            while left > 0:
                filled, most = 0, min(left, len(buffer))
                # TLS returns at most 16 KiB at a time, however much is requested.
                while filled < most and (received := receive(buffer[filled:most])):
                    filled += received
                yield bytes(buffer[:filled])
                if filled < most:
                    return
                left -= filled
        except (httpcore.TimeoutException, TimeoutError) as error:
            raise httpx.ReadTimeout(str(error)) from error
        except (httpcore.NetworkError, OSError) as error:
            raise httpx.ReadError(str(error)) from error


def _receiver(stream: httpcore.NetworkStream, timeout: float | None) -> Callable[[memoryview], int]:
    """Return a function that reads into a buffer and returns the number of bytes: straight from the socket, if possible."""
    sock = stream.get_extra_info("socket")
    if isinstance(sock, socket.socket) and not isinstance(stream.get_extra_info("ssl_object"), ssl.SSLObject):
        sock.settimeout(timeout)
        return sock.recv_into

    def receive(buffer: memoryview) -> int:
        # TLS inside a proxy's TLS.
        received = stream.read(len(buffer), timeout)
        buffer[: len(received)] = received
        return len(received)

    return receive


class _Body(httpx.SyncByteStream):
    """
    The body of a response.

    :param rest: The part that httpx reads.
    :param begun: The part that httpx does not see.
    :param end: Called on close, with whether the whole body was read.
    """

    def __init__(
        self, rest: httpx.SyncByteStream, begun: Iterator[bytes], end: Callable[[bool], None]
    ) -> None:
        self._rest = rest
        self._begun = begun
        self._end: Callable[[bool], None] | None = end
        self._is_whole = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self._begun
        yield from self._rest
        self._is_whole = True

    def close(self) -> None:
        self._rest.close()
        if (end := self._end) is not None:
            self._end = None
            end(self._is_whole)
