# SPDX-License-Identifier: Apache-2.0
"""Downloads of signed URLs: an HTTP session of its own, which never holds the API key."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import httpx

from airflow_provider_getimg.api.connection_watch import ConnectionWatch
from airflow_provider_getimg.api.errors import DownloadError, FileGoneError
from airflow_provider_getimg.api.settings import ClientSettings, is_loopback
from airflow_provider_getimg.api.signed_urls import without_query

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from airflow_provider_getimg.transfers.plan import FileCopy

CONNECT_TIMEOUT = 10.0
MAX_REDIRECTS = 3
_CHUNK_BYTES = 256 * 1024

# Which of these an expired URL answers is not documented: each means that the file is out of reach.
_GONE = frozenset({401, 403, 404, 410})


class Downloads:
    """
    A session for downloads. Use it as a context manager.

    :param settings: Proxy and time-out (seconds that one download may take) of the getimg connection.
    :param remedy: What a user does about a file that is gone, as a sentence.
    """

    def __init__(self, settings: ClientSettings, remedy: str) -> None:
        self._settings = settings
        self._remedy = remedy
        self._http = httpx.Client(
            proxy=settings.proxy,
            follow_redirects=False,
            # Bytes as they are: a decoder would hide what was really sent from the length check.
            headers={"Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def check_expiry(self, copy: FileCopy) -> None:
        """
        Refuse a file whose ``deletes_at`` has passed, without a request.

        :raises FileGoneError: It has.
        """
        if copy.media.deletes_at <= datetime.now(UTC):
            raise self._gone(copy, f"expired at {copy.media.deletes_at.isoformat()}")

    @contextmanager
    def stream(self, copy: FileCopy) -> Iterator[Iterator[bytes]]:
        """
        Open a download and yield its chunks.

        :raises FileGoneError: The URL is expired or answers 401, 403, 404 or 410.
        :raises DownloadError: Any other failure, also while the chunks are read: a cut-off body, a
            time-out, a status that is no 200.
        """
        self.check_expiry(copy)
        watch = ConnectionWatch("GET", self._settings.timeout)
        try:
            with watch, self._open(copy, watch) as response:
                yield self._body(copy, response)
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise self._broken(copy, error, watch) from None

    @contextmanager
    def _open(self, copy: FileCopy, watch: ConnectionWatch) -> Iterator[httpx.Response]:
        url = copy.media.url
        for _ in range(MAX_REDIRECTS + 1):
            self._check_address(copy, url)
            timeout = httpx.Timeout(self._settings.timeout, connect=CONNECT_TIMEOUT)
            with self._http.stream("GET", url, timeout=timeout, extensions=watch.extensions) as response:
                location = response.headers.get("location")
                if not (response.is_redirect and location):
                    self._check_status(copy, response)
                    yield response
                    return
                url = urljoin(url, location)
        raise DownloadError(f"The URL of {copy.name} redirects more than {MAX_REDIRECTS} times.")

    def _check_address(self, copy: FileCopy, url: str) -> None:
        scheme = urlsplit(url).scheme
        plain_http_is_meant = self._settings.base_url.startswith("http://") or is_loopback(url)
        if scheme != "https" and not (scheme == "http" and plain_http_is_meant):
            raise DownloadError(
                f"The URL of {copy.name} ({without_query(url)}) is not https: it is not requested."
            )

    def _check_status(self, copy: FileCopy, response: httpx.Response) -> None:
        status = response.status_code
        if status in _GONE:
            raise self._gone(
                copy,
                f"is no longer served ({status}; it was to be deleted at {copy.media.deletes_at.isoformat()})",
                status,
            )
        if status != 200:
            raise DownloadError(f"The download of {copy.name} was answered {status}.", status=status)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise DownloadError(
                f"The download of {copy.name} came encoded, though plain bytes were asked for."
            )

    def _body(self, copy: FileCopy, response: httpx.Response) -> Iterator[bytes]:
        received = 0
        for chunk in response.iter_raw(_CHUNK_BYTES):
            received += len(chunk)
            yield chunk
        announced = response.headers.get("content-length")
        if announced is not None and announced != str(received):
            raise DownloadError(f"The download of {copy.name} brought {received} of {announced} bytes.")

    def _gone(self, copy: FileCopy, why: str, status: int | None = None) -> FileGoneError:
        return FileGoneError(f"{copy.name[0].upper()}{copy.name[1:]} {why}. {self._remedy}", status=status)

    def _broken(self, copy: FileCopy, error: Exception, watch: ConnectionWatch) -> DownloadError:
        if watch.expired or isinstance(error, httpx.TimeoutException):
            return DownloadError(
                f"The download of {copy.name} did not finish within {self._settings.timeout:g} seconds."
            )
        reason = without_query(str(error)) or type(error).__name__
        return DownloadError(f"The download of {copy.name} broke: {reason}.")
