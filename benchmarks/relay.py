# SPDX-License-Identifier: Apache-2.0
"""A relay to a local port, as slow as a network: ``python -m benchmarks.relay PORT COUNT``.

Each byte arrives ``--delay`` seconds later, in either direction, and a new connection first takes a round trip, as with TCP.
It prints its port as the first line; the file COUNT grows by a byte for each connection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"
#: Bytes that wait for a slow reader before the other side's bytes are no longer read.
MAX_WAITING = 1024 * 1024


class _Side(asyncio.Protocol):
    """One side of a connection. What it receives is sent to the other side after the delay."""

    other: _Side
    transport: Any

    def __init__(self, delay: float) -> None:
        self._delay = delay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.set_write_buffer_limits(MAX_WAITING)

    def data_received(self, data: bytes) -> None:
        self._later(self.other.transport.write, data)

    def connection_lost(self, _: Exception | None) -> None:
        self._later(self.other.transport.close)

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.other.transport.resume_reading()

    def _later(self, act: Callable[..., object], *given: bytes) -> None:
        asyncio.get_running_loop().call_later(self._delay, act, *given)


class _ClientSide(_Side):
    """The side of a client, which opens a connection to the port."""

    def __init__(self, delay: float, port: int, count: Path) -> None:
        super().__init__(delay)
        self._port = port
        self._count = count

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()
        with self._count.open("ab") as count:
            count.write(b".")
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, self.other = await loop.create_connection(lambda: _Side(self._delay), HOST, self._port)
        self.other.other = self
        await asyncio.sleep(2 * self._delay)
        self.transport.resume_reading()


async def main() -> None:
    """Run the command line in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay")
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    given = parser.parse_args()
    server = await asyncio.get_running_loop().create_server(
        lambda: _ClientSide(given.delay, given.port, given.count), HOST, 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
