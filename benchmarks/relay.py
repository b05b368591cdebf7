# SPDX-License-Identifier: Apache-2.0
"""A relay to a local port, as slow as a network: ``python -m benchmarks.relay PORT COUNT``.

Each byte arrives ``--delay`` seconds later, in either direction, and a new connection first takes a round trip, as with TCP.
With ``--certificate``, it speaks TLS to its clients. It prints its port as the first line; the file COUNT grows by a byte
for each connection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
from pathlib import Path

READ_BYTES = 256 * 1024


async def main() -> None:
    """Run the command line in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay")
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--certificate", type=Path)
    arguments = parser.parse_args()
    tls = None
    if arguments.certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(arguments.certificate)

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with arguments.count.open("ab") as count:
            count.write(b".")
        there, back = await asyncio.open_connection("127.0.0.1", arguments.port, limit=READ_BYTES)
        if arguments.delay:
            await asyncio.sleep(2 * arguments.delay)
        await asyncio.gather(
            _forward(reader, back, arguments.delay), _forward(there, writer, arguments.delay)
        )

    server = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=tls, limit=READ_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Forward each chunk after the delay, until the end of the stream; then close."""
    clock = asyncio.get_running_loop().time
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def receive() -> None:
        chunk = b"first"
        while chunk:
            try:
                chunk = await reader.read(READ_BYTES)
            except OSError:
                chunk = b""
            under_way.put_nowait((clock() + delay, chunk))

    async def send() -> None:
        while True:
            due, chunk = await under_way.get()
            if (wait := due - clock()) > 0:
                await asyncio.sleep(wait)
            if not chunk:
                return
            writer.write(chunk)
            await writer.drain()

    receiving = asyncio.ensure_future(receive())
    with contextlib.suppress(OSError):
        await send()
    receiving.cancel()
    writer.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
