# SPDX-License-Identifier: Apache-2.0
"""
Watch one request on the wire: whether anything was sent, and whether it has taken too long.

httpx's read timeout applies to each read, not to all of them: a server that sends a byte a second can
hold a caller for hours. And its exceptions don't always show whether a request left the machine.
httpcore's ``trace`` extension solves both: it exposes the socket and the moment when the request's
first byte is written. Everything read from the connection goes through :class:`ResponseHeads`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_getimg.api.hosts import port_of
from airflow_provider_getimg.api.response_heads import ResponseHeads
from airflow_provider_getimg.api.transport import REUSE_EVENT, ROUTE_EVENT

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Peer:
    """
    The other end of a connection.

    :param host: The requested name or address.
    :param port: The port.
    :param address: The IP address that the host resolved to.
    :param is_proxy: Whether it is the proxy that the request goes through.
    """

    host: str
    port: int
    address: str
    is_proxy: bool = False


class ConnectionWatch:
    """
    Watches one request. Pass :attr:`extensions` to httpx, and use the watch as a context manager around the call.

    :param method: The request's HTTP method: a proxy's CONNECT doesn't count as sending it.
    :param deadline: Seconds from entering the context until the connection is aborted.
    :param check_peer: Called with the peer of each new connection, before connecting and again before anything is
        sent, and with the peer of each reused connection. If it raises, the request ends with that error.
    """

    def __init__(
        self, method: str, deadline: float, check_peer: Callable[[Peer], None] | None = None
    ) -> None:
        self._method = method.encode()
        self._check_peer = check_peer
        self._connecting_to = ("", 0)
        self._through_proxy = False
        # Reentrant: a signal handler may abort the connection in the thread that holds the lock.
        self._lock = threading.RLock()
        self._sockets: list[socket.socket] = []
        self._aborted = False
        self._timer = threading.Timer(deadline, self._expire)
        self._timer.daemon = True
        #: Whether the request's first byte was handed to the operating system.
        self.sent = False
        #: Whether the deadline has passed and the connection was aborted.
        self.expired = False

    @property
    def extensions(self) -> dict[str, Any]:
        """The value for httpx's ``extensions=``."""
        return {"trace": self._on_event}

    def _on_event(self, name: str, info: dict[str, Any]) -> None:
        if name == ROUTE_EVENT:
            self._through_proxy = info["proxy"] is not None
            if self._aborted:
                raise TimeoutError("the request was aborted before it was sent")
        elif name.endswith(".connect_tcp.started"):
            self._connecting_to = str(info.get("host", "")), int(info.get("port", 0))
            self._check_resolved_addresses()
        elif name.endswith((".connect_tcp.complete", ".start_tls.complete", REUSE_EVENT)):
            stream = info.get("return_value")
            if name == REUSE_EVENT:
                url = info["url"]
                self._connecting_to = url.raw_host.decode("ascii"), port_of(url)
            if not name.endswith(".start_tls.complete"):
                self._check_peer_address(stream)
            if stream is not None:
                stream.read = ResponseHeads(stream.read).read
            sock = stream.get_extra_info("socket") if stream is not None else None
            if isinstance(sock, socket.socket):
                with self._lock:
                    self._sockets.append(sock)
                    late = self._aborted
                if late:
                    _shut_down(sock)
        elif name.endswith(".send_request_headers.started"):
            if self._aborted:
                raise TimeoutError("the request was aborted before it was sent")
            self.sent = self.sent or info["request"].method == self._method

    def _check_resolved_addresses(self) -> None:
        """Refuse the connection before it is made if ``check_peer`` refuses all of the host's addresses."""
        if self._check_peer is None or self._through_proxy:
            return
        host, port = self._connecting_to
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            # Connecting will fail with the same error and report it.
            return
        refusals = []
        for *_, address in found:
            try:
                self._check_peer(Peer(host, port, str(address[0])))
            except Exception as refusal:
                refusals.append(refusal)
            else:
                return
        if refusals:
            raise refusals[0]

    def _check_peer_address(self, stream: Any) -> None:
        if self._check_peer is None:
            return
        host, port = self._connecting_to
        try:
            address = str(stream.get_extra_info("server_addr")[0])
            self._check_peer(Peer(host, port, address, is_proxy=self._through_proxy))
        except BaseException:
            # No one else can close the new connection yet.
            stream.close()
            raise

    def _expire(self) -> None:
        self.expired = True
        self.abort()

    def abort(self) -> None:
        """Abort the connection now; a blocked read returns immediately. Safe to call from any thread. Idempotent."""
        with self._lock:
            self._aborted = True
            sockets = list(self._sockets)
        for sock in sockets:
            _shut_down(sock)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._timer.cancel()


def _shut_down(sock: socket.socket) -> None:
    # Call the base class's method: SSLSocket.shutdown() would drop the TLS state that the reading thread uses.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
