# SPDX-License-Identifier: Apache-2.0
"""The files: signed URLs that expire, pictures and clips rendered on download, and padding that takes no memory."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import secrets
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from airflow_provider_getimg.simulator.errors import ApiError
from airflow_provider_getimg.simulator.request_log import timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_getimg.simulator.clips import Clip
    from airflow_provider_getimg.simulator.pictures import Picture

CACHE_SIZE = 64 * 1024 * 1024
PADDING_BLOCK = 1024 * 1024
DRAWING_THREADS = 2


@dataclass(frozen=True)
class Content:
    """A body of known length: some bytes, then padding that is generated while it is sent.

    :param start: The bytes before the padding.
    :param length: The total length; at least that of ``start``.
    :param seed: Selects the padding: the same seed always gives the same padding, another seed a different one.
    """

    start: bytes
    length: int
    seed: str = ""

    @classmethod
    def of(cls, start: bytes) -> Content:
        """Return a body of these bytes, without padding."""
        return cls(start, len(start))

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the body in pieces of at most this many bytes."""
        for position in range(0, len(self.start), size):
            yield self.start[position : position + size]
        # The padding is one block, repeated endlessly, starting at an offset that depends on the seed.
        block = _padding_block()
        offset = int.from_bytes(hashlib.sha256(self.seed.encode()).digest()[:4]) % PADDING_BLOCK
        left = self.length - len(self.start)
        while left > 0:
            piece = block[offset : offset + min(size, left)]
            yield piece
            left -= len(piece)
            offset = (offset + len(piece)) % PADDING_BLOCK


@cache
def _padding_block() -> bytes:
    return random.Random("padding").randbytes(PADDING_BLOCK)


@dataclass(frozen=True)
class MediaFile:
    """A file that can be downloaded until ``deletes_at`` (Unix seconds)."""

    id: str
    shown: Picture | Clip
    deletes_at: int
    size: int


class Media:
    """All files that can still be downloaded."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._files: OrderedDict[str, MediaFile] = OrderedDict()
        self._drawn: OrderedDict[Picture | Clip, bytes] = OrderedDict()
        self._drawn_size = 0
        self._drawing: dict[Picture | Clip, asyncio.Future[bytes]] = {}
        self._threads = ThreadPoolExecutor(DRAWING_THREADS, thread_name_prefix="draw")

    def publish(self, file_id: str, shown: Picture | Clip, lifetime: float, size: int) -> MediaFile:
        """Offer a picture or a clip for download, for ``lifetime`` seconds from now."""
        if size:
            # Load tests need files, not pictures: those of one shape share a drawing and differ in padding.
            shown = replace(shown, prompt=f"A test file of {size:,} bytes")
        # Whole seconds, as in the URL; rounded down, so that no file outlives its lifetime.
        file = MediaFile(file_id, shown, int(time.time() + lifetime), size)
        self._forget_dead()
        self._files[file_id] = file
        return file

    def _forget_dead(self) -> None:
        # Oldest first: the lifetime rarely changes, and an expired file behind a live one can wait.
        while self._files and next(iter(self._files.values())).deletes_at <= time.time():
            self._files.popitem(last=False)

    def item(self, file: MediaFile, base_url: str, index: int = 0) -> dict[str, Any]:
        """Return the file's entry in ``data``."""
        path = f"{file.id}/{index}"
        query = urlencode({"exp": file.deletes_at, "sig": self._sign(path, str(file.deletes_at))})
        return {
            "url": f"{base_url}v2/downloads/{path}?{query}",
            "mime_type": file.shown.mime_type,
            "deletes_at": timestamp(datetime.fromtimestamp(file.deletes_at, UTC)),
            **file.shown.facts,
        }

    def find(self, file_id: str, index: str, exp: str, sig: str) -> MediaFile:
        """Return the file of a URL, or refuse: 403 if the URL was tampered with, 410 once it has expired."""
        expected = self._sign(f"{file_id}/{index}", exp)
        if not hmac.compare_digest(expected.encode(), sig.encode("utf-8", "replace")):
            raise ApiError(403, "The signature of this URL is invalid.")
        # Only URLs signed here get this far: exp is a number, and the file was once known.
        if int(exp) <= time.time() or file_id not in self._files:
            raise ApiError(410, "This file has been deleted.")
        return self._files[file_id]

    def _sign(self, path: str, exp: str) -> str:
        text = f"{path}?exp={exp}".encode("utf-8", "replace")
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()

    async def content(self, file: MediaFile) -> Content:
        """Return the content of a file, drawing it unless it is cached."""
        drawn = self._drawn.get(file.shown)
        if drawn is None:
            drawn = await self._draw(file.shown)
        else:
            self._drawn.move_to_end(file.shown)
        return Content(drawn, max(file.size, len(drawn)), file.id)

    async def _draw(self, picture: Picture | Clip) -> bytes:
        # Requests for a picture that is being drawn wait for it: in a load test, many arrive at once.
        if (drawing := self._drawing.get(picture)) is not None:
            return await drawing
        drawing = asyncio.get_running_loop().run_in_executor(self._threads, picture.encode)
        self._drawing[picture] = drawing
        try:
            drawn = await drawing
        finally:
            del self._drawing[picture]
        self._drawn[picture] = drawn
        self._drawn_size += len(drawn)
        while self._drawn_size > CACHE_SIZE:
            self._drawn_size -= len(self._drawn.popitem(last=False)[1])
        return drawn

    def close(self) -> None:
        """Cancel queued drawings; those in progress finish."""
        self._threads.shutdown(wait=False, cancel_futures=True)
