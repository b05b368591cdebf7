# SPDX-License-Identifier: Apache-2.0
"""Downloads of signed URLs: an HTTP session of its own, which never holds the API key."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import httpx

from airflow_provider_getimg.api.answers import wait_before_next
from airflow_provider_getimg.api.connection_watch import ConnectionWatch
from airflow_provider_getimg.api.errors import (
    DownloadError,
    FileGoneError,
    FileRefusedError,
    GetimgError,
    KilledError,
)
from airflow_provider_getimg.api.media import SIGNATURE_BYTES, mismatch
from airflow_provider_getimg.api.settings import http_client
from airflow_provider_getimg.api.signed_urls import without_query
from airflow_provider_getimg.transfers.network_guard import NetworkGuard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from airflow_provider_getimg.api.settings import ClientSettings
    from airflow_provider_getimg.transfers.plan import FileCopy

CONNECT_TIMEOUT = 10.0
MAX_REDIRECTS = 3
_CHUNK_BYTES = 1024 * 1024

# Which of these an expired URL answers is not documented: each means that the file is out of reach.
_GONE = frozenset({401, 403, 404, 410})


class Deadline:
    """
    The time that one file may take, over all attempts.

    It begins when it is first asked for, which is when the file has its first slot: waiting for others is not its fault.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end: float | None = None

    def left(self) -> float:
        """Return the seconds that are left, 0 at least."""
        if self._end is None:
            self._end = time.monotonic() + self._seconds
        return max(0.0, self._end - time.monotonic())


class Download:
    """
    One open download.

    :param chunks: The body, verified while it is read.
    :param size: The announced length in bytes, if any.
    """

    def __init__(self, chunks: Iterator[bytes], size: int | None) -> None:
        self.chunks = chunks
        self.size = size


class Downloads:
    """
    A session for downloads, for several threads. Use it as a context manager.

    :param settings: Proxy, timeout and base URL of the getimg connection.
    :param remedy: What a user does about a file that is gone, as a sentence.
    :param max_bytes: The largest file to accept.
    :param concurrency: How many downloads are open at once; others wait.
    """

    def __init__(self, settings: ClientSettings, remedy: str, *, max_bytes: int, concurrency: int) -> None:
        self.timeout = settings.timeout
        self._remedy = remedy
        self._max_bytes = max_bytes
        self._slots = threading.Semaphore(concurrency)
        self._guard = NetworkGuard(settings.base_url, settings.proxy)
        self._aborted = False
        self._watches: set[ConnectionWatch] = set()
        # Each connection is used once: a watch can only cut one whose beginning it saw.
        self._http = http_client(
            proxy=settings.proxy,
            follow_redirects=False,
            # Bytes as they are: a decoder would hide what was really sent from the length check.
            headers={"Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.close()

    def abort(self) -> None:
        """End the downloads in flight at once, and let none begin. From any thread or signal handler."""
        self._aborted = True
        for watch in list(self._watches):
            watch.cut()

    def check_expiry(self, copy: FileCopy) -> None:
        """
        Refuse a file whose ``deletes_at`` has passed, without a request.

        :raises FileGoneError: It has.
        """
        if copy.media.deletes_at <= datetime.now(UTC):
            raise self._gone(copy, f"expired at {copy.media.deletes_at.isoformat()}")

    @contextmanager
    def open(self, copy: FileCopy, deadline: Deadline) -> Iterator[Download]:
        """
        Open a download, once one of the slots is free. What goes wrong is raised here or while the chunks are read.

        :param deadline: When it must have ended; it begins with the file's first slot.
        :raises FileGoneError: The URL is expired or answers 401, 403, 404 or 410.
        :raises FileRefusedError: The URL leads where it may not, or the file is over ``max_bytes``.
        :raises DownloadError: Any other failure: a cut-off body, a time-out, a status that is no 200, a body that is
            not what the API promised.
        :raises KilledError: The session was aborted.
        """
        with self._slots, ExitStack() as stack:
            self.check_expiry(copy)
            watch = ConnectionWatch("GET", deadline.left(), self._guard.check_peer)
            self._watches.add(watch)
            stack.callback(self._watches.discard, watch)
            # After the watch is known to abort(): either it sees the watch, or we see that it was called.
            if self._aborted:
                raise KilledError(f"The task was told to end before {copy.name} was saved.")
            stack.enter_context(watch)
            with self._faults_of(copy, watch):
                response = stack.enter_context(self._open(copy, watch))
            announced = response.headers.get("content-length", "")
            chunks = self._verified(copy, response, watch)
            yield Download(chunks, int(announced) if announced.isdigit() else None)

    @contextmanager
    def _faults_of(self, copy: FileCopy, watch: ConnectionWatch) -> Iterator[None]:
        """Turn the faults of a connection, and of a URL or a host that can't be parsed, into ours."""
        try:
            yield
        except GetimgError:
            raise
        except Exception as error:
            raise self._broken(copy, error, watch) from None

    @contextmanager
    def _open(self, copy: FileCopy, watch: ConnectionWatch) -> Iterator[httpx.Response]:
        url = copy.media.url
        for _ in range(MAX_REDIRECTS + 1):
            self._guard.check_url(url)
            timeout = httpx.Timeout(self.timeout, connect=CONNECT_TIMEOUT)
            with self._http.stream("GET", url, timeout=timeout, extensions=watch.extensions) as response:
                location = response.headers.get("location")
                if not (response.is_redirect and location):
                    self._check_head(copy, response)
                    yield response
                    return
                url = urljoin(url, location)
        raise DownloadError(f"The URL of {copy.name} redirects more than {MAX_REDIRECTS} times.")

    def _check_head(self, copy: FileCopy, response: httpx.Response) -> None:
        status = response.status_code
        if status in _GONE:
            deletes_at = copy.media.deletes_at.isoformat()
            raise self._gone(
                copy, f"is no longer served ({status}; it was to be deleted at {deletes_at})", status
            )
        if status != 200:
            raise DownloadError(
                f"The download of {copy.name} was answered with {status}.",
                status=status,
                retry_after=wait_before_next(response),
            )
        if response.headers.get("content-encoding", "identity") != "identity":
            raise DownloadError(
                f"The download of {copy.name} came encoded, though plain bytes were asked for."
            )
        announced = response.headers.get("content-length", "")
        if not announced and response.headers.get("transfer-encoding", "") != "chunked":
            raise DownloadError(
                f"The download of {copy.name} came without a length: nobody could tell whether it is whole."
            )
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large(copy, f"{announced} bytes")

    def _verified(self, copy: FileCopy, response: httpx.Response, watch: ConnectionWatch) -> Iterator[bytes]:
        """Yield the body; raise where it is not the file that the API promised."""
        received = 0
        chunks = _with_whole_head(_body(response, self.timeout))
        while True:
            with self._faults_of(copy, watch):
                chunk = next(chunks, None)
            if chunk is None:
                break
            if not received and (found := mismatch(chunk[:SIGNATURE_BYTES], copy.media.mime_type)):
                raise DownloadError(
                    f"The download of {copy.name} brought {found} where {copy.media.mime_type} was promised."
                )
            received += len(chunk)
            if received > self._max_bytes:
                raise self._too_large(copy, f"more than {received} bytes")
            yield chunk
        announced = response.headers.get("content-length")
        if announced is not None and announced != str(received):
            # Not an error of its own: the deadline or the file's end may be what cut it off.
            raise self._broken(copy, EOFError(f"{received} of {announced} bytes came"), watch)
        if not received:
            raise DownloadError(f"The download of {copy.name} brought nothing.")

    def _too_large(self, copy: FileCopy, size: str) -> FileRefusedError:
        return FileRefusedError(
            f"{capital(copy.name)} is {size}: max_bytes allows {self._max_bytes}, nothing was saved."
        )

    def _gone(self, copy: FileCopy, why: str, status: int | None = None) -> FileGoneError:
        return FileGoneError(f"{capital(copy.name)} {why}. {self._remedy}", status=status)

    def _broken(
        self, copy: FileCopy, error: Exception, watch: ConnectionWatch
    ) -> DownloadError | FileGoneError:
        # The file's end can come in the middle of a download, and looks like any other broken connection.
        if copy.media.deletes_at <= datetime.now(UTC):
            deletes_at = copy.media.deletes_at.isoformat()
            return self._gone(copy, f"expired at {deletes_at}, while it was downloaded")
        if watch.expired or isinstance(error, httpx.TimeoutException):
            return DownloadError(
                f"The download of {copy.name} did not finish within {self.timeout:g} seconds."
            )
        reason = without_query(str(error)).rstrip(".") or type(error).__name__
        return DownloadError(f"The download of {copy.name} broke: {reason}.")


def _body(response: httpx.Response, timeout: float) -> Iterator[bytes]:
    """
    Yield the bytes of a body as the socket delivers them.

    httpx takes a body apart in pieces of 64 KiB, each through several layers of Python: half of a copy's CPU time.
    Where the length is known there is nothing to take apart, and the rest is read off the connection itself, which httpx
    hands out for such uses. The connection is not used again.
    """
    chunks = response.iter_raw()
    length = response.headers.get("content-length", "")
    if not length.isdigit() or "transfer-encoding" in response.headers or response.http_version != "HTTP/1.1":
        yield from chunks
        return
    left = int(length)
    # What came with the head is in httpx's buffer, all of it in the first chunk.
    for chunk in chunks:
        left -= len(chunk)
        yield chunk
        break
    stream = response.extensions["network_stream"]
    while left > 0:
        chunk = stream.read(min(left, _CHUNK_BYTES), timeout=timeout)
        if not chunk:
            return
        left -= len(chunk)
        yield chunk


def _with_whole_head(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Join the first chunks until they hold a file's signature, however a server cuts them."""
    head = b""
    for chunk in chunks:
        if len(head) < SIGNATURE_BYTES:
            head += chunk
            if len(head) >= SIGNATURE_BYTES:
                yield head
        else:
            yield chunk
    if 0 < len(head) < SIGNATURE_BYTES:
        yield head


def capital(text: str) -> str:
    """Return a text with its first letter in upper case, and the rest as it is: ids stay what they are."""
    return text[:1].upper() + text[1:]
