# SPDX-License-Identifier: Apache-2.0
"""
Downloads from signed URLs, in a separate HTTP session that never holds the API key.

The files are paid for, so downloads are lenient: if the bytes are an image, they are the file, however the server labels,
encodes or measures them. Downloads are free, so failures may be retried until the server itself says that the file is gone.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import httpx

from airflow_provider_getimg.api.connection_watch import ConnectionWatch
from airflow_provider_getimg.api.errors import (
    DownloadError,
    FileGoneError,
    FileRefusedError,
    GetimgError,
    KilledError,
    NotAnImageError,
)
from airflow_provider_getimg.api.media import OCTET_STREAM, is_whole, known_type, text_in, type_of
from airflow_provider_getimg.api.responses import server_time, wait_before_next
from airflow_provider_getimg.api.settings import http_client
from airflow_provider_getimg.api.signed_urls import reason
from airflow_provider_getimg.s3.kept_connections import KeptConnections
from airflow_provider_getimg.s3.network_guard import NetworkGuard
from airflow_provider_getimg.s3.plan import file_name
from airflow_provider_getimg.s3.spool import Spool, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from airflow.sdk.types import Logger

    from airflow_provider_getimg.api.settings import ClientSettings
    from airflow_provider_getimg.api.types import Generation, MediaFile
    from airflow_provider_getimg.s3.plan import KnownMedia

CONNECT_TIMEOUT = 10.0
MAX_REDIRECTS = 5
# The body of a redirect is no larger.
_SMALL_BYTES = 64 * 1024
# At most two layers of compression: a third is never intended.
_MAX_LAYERS = 2

# Statuses of a URL that has expired or does not work yet: the time shows which.
_NOT_SERVED = frozenset({401, 403, 404})
_GONE = 410
# Success statuses that deliver no file.
_NO_CONTENT_STATUSES = frozenset({202, 204, 205})


class Deadline:
    """
    The time limit for one file, across all attempts.

    Starts on first use, when the file gets its first slot: time spent waiting for other files does not count.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end: float | None = None

    def left(self) -> float:
        """Return the seconds left, at least 0."""
        if self._end is None:
            self._end = time.monotonic() + self._seconds
        return max(0.0, self._end - time.monotonic())


class Downloads:
    """
    A download session that several threads can share. Use it as a context manager.

    :param settings: Proxy, timeout and base URL of the getimg connection.
    :param remedy: What a user can do about a file that is gone, as a sentence.
    :param max_bytes: The largest file to accept.
    :param concurrency: How many downloads run at once; others wait.
    :param log: Where to log anomalies.
    """

    def __init__(
        self, settings: ClientSettings, remedy: str, *, max_bytes: int, concurrency: int, log: Logger
    ) -> None:
        self.timeout = settings.timeout
        self._remedy = remedy
        self._max_bytes = max_bytes
        self._log = log
        self._slots = threading.Semaphore(concurrency)
        self._guard = NetworkGuard(settings.base_url, settings.proxy, settings.allowed_networks)
        self._aborted = False
        self._watches: set[ConnectionWatch] = set()
        self._http = http_client(
            transport=KeptConnections(settings.proxy, concurrency),
            follow_redirects=False,
            # Raw bytes: a decoder would hide from the length check what was really sent.
            headers={"Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.close()

    def abort(self) -> None:
        """Abort the downloads in flight immediately and start no more. Safe to call from any thread or signal handler."""
        self._aborted = True
        for watch in list(self._watches):
            watch.abort()

    def fetch(self, name: str, media: MediaFile | KnownMedia, deadline: Deadline) -> tuple[Spool, str]:
        """
        Wait for a free slot, then download a file and verify it.

        :param name: The file's name in messages.
        :param media: Its URL, and the properties that the API promised.
        :param deadline: The file's time limit; it starts with the file's first slot.
        :return: The file, which the caller must close, and its content type, detected from its bytes.
        :raises FileGoneError: The server returned 410, or 401, 403 or 404 after the file's deletion time.
        :raises FileRefusedError: The URL may not be requested, or the file exceeds ``max_bytes``.
        :raises NotAnImageError: The body is a page, a message or empty.
        :raises DownloadError: Any other failure: a truncated body, a timeout, an unsuccessful status, a full disk.
        :raises KilledError: The session was aborted.
        """
        with self._request(name, media, deadline) as (response, watch):
            spool = Spool(name, self._max_bytes)
            may_be_deflate = "deflate" in response.headers.get("content-encoding", "").lower()
            try:
                self._receive(name, response, watch, spool)
                for _ in range(_MAX_LAYERS):
                    spool = spool.decoded(is_deflate=may_be_deflate and type_of(spool.head) is None)
                return spool, self._content_type(name, media, spool)
            except TooLargeError:
                spool.close()
                raise self._too_large(name, "more") from None
            except BaseException:
                spool.close()
                raise

    def check_before_payment(self) -> None:
        """
        Before anything is paid for, fail if every download would be refused.

        :raises NetworkRefusedError: The connection does not allow downloads from the host that serves the files.
        """
        self._guard.check_before_payment()

    def all_gone(self, generation: Generation) -> bool:
        """
        Return whether all files of a response are past deletion and the server confirms it; a worker's clock may be wrong.

        :raises KilledError: The session was aborted.
        """
        return is_past_deletion(generation) and all(
            self._is_gone(file_name(generation.id, media.index), media) for media in generation.data
        )

    def _is_gone(self, name: str, media: MediaFile) -> bool:
        """
        Try to download a file that should be deleted by now. If the request fails, the file does not count as gone.

        :raises KilledError: The session was aborted.
        """
        try:
            spool, _ = self.fetch(name, media, Deadline(self.timeout))
        except (FileGoneError, NotAnImageError):
            return True
        except KilledError:
            raise
        except GetimgError:
            return False
        spool.close()
        return False

    @contextmanager
    def _request(
        self, name: str, media: MediaFile | KnownMedia, deadline: Deadline
    ) -> Iterator[tuple[httpx.Response, ConnectionWatch]]:
        """Open the download and check the response's head."""
        with self._slots, ExitStack() as stack:
            watch = ConnectionWatch("GET", deadline.left(), self._guard.check_peer)
            self._watches.add(watch)
            stack.callback(self._watches.discard, watch)
            # Checked after the watch is registered: either abort() sees the watch, or this sees that abort() was called.
            if self._aborted:
                raise KilledError(f"The task was terminated before {name} was saved.")
            stack.enter_context(watch)
            with self._faults_of(name, watch):
                response = stack.enter_context(self._open(name, media, watch))
            yield response, watch

    @contextmanager
    def _faults_of(self, name: str, watch: ConnectionWatch) -> Iterator[None]:
        """Convert the errors of a connection, or of a URL or host that can't be parsed, into this package's own."""
        try:
            yield
        except (GetimgError, TooLargeError):
            raise
        except httpx.InvalidURL as error:
            raise FileRefusedError(f"The URL of {name} can't be used: {reason(error)}.") from None
        except Exception as error:
            raise self._broken(name, error, watch) from None

    @contextmanager
    def _open(
        self, name: str, media: MediaFile | KnownMedia, watch: ConnectionWatch
    ) -> Iterator[httpx.Response]:
        url = media.url
        for _ in range(MAX_REDIRECTS + 1):
            self._guard.check_url(url)
            timeout = httpx.Timeout(self.timeout, connect=CONNECT_TIMEOUT)
            with self._http.stream("GET", url, timeout=timeout, extensions=watch.extensions) as response:
                location = response.headers.get("location")
                if not (response.is_redirect and location):
                    self._check_head(name, media, response)
                    yield response
                    return
                url = urljoin(url, location)
                if (_announced(response) or 0) <= _SMALL_BYTES and not _is_chunked(response):
                    # Once the body is read, the connection can be reused.
                    response.read()
        raise DownloadError(f"The URL of {name} redirects more than {MAX_REDIRECTS} times.")

    def _check_head(self, name: str, media: MediaFile | KnownMedia, response: httpx.Response) -> None:
        status = response.status_code
        ends = media.deletes_at
        # By the server's clock, if it sends the time: a worker's may be wrong, and a URL may not work yet.
        is_over = ends is not None and ends.timestamp() <= server_time(response)
        if status == _GONE or (status in _NOT_SERVED and is_over):
            when = (
                "the API gave no deletion time"
                if ends is None
                else f"it was to be deleted at {ends.isoformat()}"
            )
            raise FileGoneError(
                f"{capital(name)} is no longer served ({status}); {when}. {self._remedy}",
                status=status,
            )
        if not response.is_success or status in _NO_CONTENT_STATUSES:
            raise DownloadError(
                f"The download of {name} returned {status}.",
                status=status,
                retry_after=wait_before_next(response),
            )
        announced = _announced(response)
        if announced is not None and announced > self._max_bytes:
            raise self._too_large(name, str(announced))

    def _receive(self, name: str, response: httpx.Response, watch: ConnectionWatch, spool: Spool) -> None:
        """Read the body; raise if it is incomplete."""
        with self._faults_of(name, watch):
            broken: httpx.RemoteProtocolError | None = None
            try:
                for chunk in response.iter_raw():
                    spool.write(chunk)
            except httpx.RemoteProtocolError as error:
                if not _is_chunked(response):
                    raise
                broken = error
            spool.seal()
            if broken is not None:
                # The chunks' framing is invalid, or missing at the end: the file itself shows whether it is complete.
                if not is_whole(spool.file(), spool.size):
                    raise broken
                self._log.warning(
                    "The download of %s broke off (%s), but the file is whole.", name, reason(broken)
                )
                return
            announced = _announced(response)
            if announced is not None and announced != spool.size:
                raise EOFError(f"{spool.size} of {announced} bytes arrived")
            whole = _whole_size(response)
            if whole is not None and whole != spool.size:
                raise EOFError(f"{spool.size} of {whole} bytes arrived, as a part of the file")
            is_part = response.status_code == 206 and whole is None
            if is_part or (announced is None and not _is_chunked(response)):
                # Either the server finished or the connection broke: the file itself shows which.
                if is_whole(spool.file(), spool.size) is False:
                    raise EOFError(
                        f"{spool.size} bytes arrived without a length, and the file's end is missing"
                    )
                self._log.warning("The download of %s came without a length.", name)

    def _content_type(self, name: str, media: MediaFile | KnownMedia, spool: Spool) -> str:
        """Return the content type, detected from the bytes."""
        promised = media.mime_type or "nothing"
        if not spool.size:
            raise NotAnImageError(f"The download of {name} was empty.", spool.sha256)
        found = type_of(spool.head)
        if found is None and (text := text_in(spool.head)) is not None:
            raise NotAnImageError(
                f"The download of {name} returned {text} instead of an image.", spool.sha256
            )
        if found is None:
            self._log.warning(
                "The bytes of %s are of an unknown type; %s was promised. It is saved as %s.",
                name,
                promised,
                OCTET_STREAM,
            )
            return OCTET_STREAM
        if found != known_type(promised):
            self._log.warning(
                "The bytes of %s are %s; %s was promised. It is saved as %s.",
                name,
                found,
                promised,
                found,
            )
        return found

    def _too_large(self, name: str, size: str) -> FileRefusedError:
        return FileRefusedError(
            f"{capital(name)} must be at most {self._max_bytes} bytes (max_bytes), got {size}. It was not saved."
        )

    def _broken(self, name: str, error: Exception, watch: ConnectionWatch) -> DownloadError:
        if watch.expired or isinstance(error, httpx.TimeoutException):
            return DownloadError(f"The download of {name} did not finish within {self.timeout:g} seconds.")
        return DownloadError(f"The download of {name} broke: {reason(error)}.")


def is_past_deletion(generation: Generation) -> bool:
    """Return whether all files of a response are past their deletion time, by this machine's clock."""
    now = datetime.now(UTC)
    return all(media.deletes_at is not None and media.deletes_at <= now for media in generation.data)


def _announced(response: httpx.Response) -> int | None:
    """Return the announced length of the body in bytes, however many leading zeros it has."""
    # A chunked body carries its own length, whatever Content-Length says.
    return None if _is_chunked(response) else _number(response.headers.get("content-length", ""))


def _whole_size(response: httpx.Response) -> int | None:
    """Return the whole file's size from a partial response (206); None if it is missing, or the response is not partial."""
    total = response.headers.get("content-range", "").rpartition("/")[2]
    return _number(total) if response.status_code == 206 else None


def _number(text: str) -> int | None:
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits.lstrip("0")) < 20 else None


def _is_chunked(response: httpx.Response) -> bool:
    return "transfer-encoding" in response.headers


def capital(text: str) -> str:
    """Capitalize the first letter of a text and leave the rest alone: ids must not change."""
    return text[:1].upper() + text[1:]
