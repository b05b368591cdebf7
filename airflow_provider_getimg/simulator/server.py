# SPDX-License-Identifier: Apache-2.0
"""The process: a socket, a server on it, and a quick and quiet shutdown."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import TYPE_CHECKING, cast

import uvicorn

from airflow_provider_getimg.simulator.app import create_app
from airflow_provider_getimg.simulator.wire import ConnectionProtocol

if TYPE_CHECKING:
    from types import FrameType

    from airflow_provider_getimg.simulator.state import Simulator


class WithoutQuery(logging.Filter):
    """Strips the query string from access logs: the signature in it is a credential."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Strip the query string from the logged path, and keep the record."""
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, *rest = record.args
            record.args = (client, method, str(path).partition("?")[0], *rest)
        return True


class SimulatorServer(uvicorn.Server):
    """A server that prints its URL, and doesn't wait for open connections when it is terminated.

    :param url: The URL to print as the first line of stdout, once connections are accepted.
    """

    def __init__(self, config: uvicorn.Config, simulator: Simulator, url: str) -> None:
        super().__init__(config)
        self._simulator = simulator
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then print the URL."""
        await super().startup(sockets)
        print(self._url, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Exit on both SIGTERM and Ctrl-C. The signal isn't re-raised: that would print a stack trace."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Abort all connections, wake all waiting tasks, and exit."""
        self._simulator.stopping.set()
        # Silence the errors of requests that are cut off now.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        for connection in list(self.server_state.connections):
            cast("ConnectionProtocol", connection).client_connection.abort()
        self._simulator.media.close()
        # The connections are lost one iteration of the event loop later.
        await asyncio.sleep(0)
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and listening.

    :raises OSError: If there is no such host, or the port is taken.
    """
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=2048)


def url_of(listener: socket.socket) -> str:
    """Return the URL at which a client on this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(simulator: Simulator, listener: socket.socket, *, verbose: bool) -> None:
    """Serve the simulator on the socket until a signal ends it.

    :param verbose: Log every request to stderr, without its query string.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO if verbose else logging.ERROR, format="%(message)s"
    )
    logging.getLogger("uvicorn.access").addFilter(WithoutQuery())
    config = uvicorn.Config(
        create_app(simulator),
        # Explicit: uvicorn would pick httptools and uvloop if installed, but ConnectionProtocol is built on h11.
        http=ConnectionProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=verbose,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        backlog=2048,
    )
    SimulatorServer(config, simulator, url_of(listener)).run([listener])
