# SPDX-License-Identifier: Apache-2.0
"""Copy one file from its signed URL to S3: download and verify it in full, then write it with one request."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception, sleep_using_event, stop_after_attempt

from airflow_provider_getimg.api.errors import (
    DownloadError,
    FileRefusedError,
    GetimgError,
    KilledError,
    NotAnImageError,
    ObjectExistsError,
    ObjectStoreError,
)
from airflow_provider_getimg.retry import backoff
from airflow_provider_getimg.s3.download import Deadline, capital
from airflow_provider_getimg.s3.object_options import REQUEST_SHA256
from airflow_provider_getimg.s3.store import OccupiedKeyError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from airflow.sdk.types import Logger
    from tenacity import RetryCallState

    from airflow_provider_getimg.s3.download import Downloads
    from airflow_provider_getimg.s3.plan import TransferItem
    from airflow_provider_getimg.s3.spool import Spool
    from airflow_provider_getimg.s3.store import S3Store, StoredObject

IF_EXISTS = ("skip", "replace", "fail")

#: Repeating a download is free: attempts per try, and the bounds in seconds of the wait between them.
ATTEMPTS = 5
BACKOFF_FIRST = 0.5
BACKOFF_LIMIT = 20.0


@dataclass(frozen=True, slots=True)
class SavedFile:
    """
    A file that is saved in S3.

    :param mime_type: Its content type: detected from its bytes, or as S3 has it if the object already existed.
    :param etag: As S3 returned it; empty if it returned none.
    """

    item: TransferItem
    size: int
    sha256: str
    etag: str
    mime_type: str | None

    @classmethod
    def of_stored(cls, item: TransferItem, stored: StoredObject, store: S3Store) -> SavedFile:
        """Return a file that is at its key already. Its content is read if its digest is unknown."""
        sha256 = stored.sha256 or store.sha256_of(item)
        return cls(item, stored.size, sha256, stored.etag, stored.mime_type)

    def row(self) -> dict[str, Any]:
        """Return the file's row in the XCom."""
        return {
            "uri": self.item.uri,
            "bucket": self.item.bucket,
            "key": self.item.key,
            "bytes": self.size,
            "sha256": self.sha256,
            "etag": self.etag,
            "mime_type": self.mime_type,
            "width": self.item.media.width,
            "height": self.item.media.height,
            "generation_id": self.item.generation_id,
            "index": self.item.index,
            "model": self.item.model,
        }


class Copier:
    """
    Copies files. Safe to use from several threads.

    :param store: S3 with the user's options.
    :param downloads: The download session.
    :param if_exists: What to do if an object exists at the key: ``skip``, ``replace`` or ``fail``.
    :param killed: Set when the task is terminated.
    :param log: The task's log.
    """

    def __init__(
        self,
        store: S3Store,
        downloads: Downloads,
        *,
        if_exists: str,
        killed: threading.Event,
        log: Logger,
    ) -> None:
        #: S3 with the user's options.
        self.store = store
        #: The download session.
        self.downloads = downloads
        self._if_exists = if_exists
        self._killed = killed
        self._log = log
        # The keys that existed when they were listed; None if they were not.
        self._listed: frozenset[str] | None = None
        # If the API repeats an id, several files have one key, and none may be mistaken for another. Maps the hash of an
        # object's URI, and of the URI with a request, to the hash of the URL of the first file that claimed it.
        self._claims: dict[int, int] = {}

    def list_keys(self, items: Sequence[TransferItem]) -> None:
        """List which keys of these files exist, all in one bucket, if that is cheaper than a HEAD for each."""
        if items and self._if_exists != "replace":
            self._listed = self.store.existing_keys([item.key or None for item in items], items[0].bucket)

    def save(self, item: TransferItem, *, key_is_free: bool = False) -> SavedFile:
        """
        Save a file unless it is already saved. Failed downloads are retried within the connection's timeout.

        :param key_is_free: Whether nothing was at the key a moment ago: the check before the download is skipped, as for a key
            that :meth:`list_keys` did not find.
        :raises GetimgError: Its message says which file failed, why, what it cost, and what to do.
        """
        deadline = Deadline(self.downloads.timeout)
        try:
            is_free = key_is_free or (self._listed is not None and item.key not in self._listed)
            is_first = self._claim(item, item.uri)
            self._claim(item, item.uri, item.request_sha256)
            if item.key and not (is_first and (is_free or self._if_exists == "replace")):
                stored = self.store.head(item.bucket, item.key)
                if stored is not None:
                    return self._resolve_existing(item, stored, None, deadline)
            spool, mime_type = self._downloaded(item, deadline)
            with spool:
                return self._write(item.with_key(spool.sha256, mime_type), spool, mime_type, deadline)
        except GetimgError as error:
            raise error.with_bill([item.generation_id], item.cost) from None

    def find(self, items: Sequence[TransferItem]) -> Sequence[SavedFile]:
        """
        Return a generation's files if all of them are already saved at their keys; otherwise none.

        :raises GetimgError: The request to S3 failed.
        """
        found = []
        for item in items:
            stored = self.store.head(item.bucket, item.key) if item.key else None
            if stored is None or not self._is_copy(item, stored):
                return []
            if not self._claim(item, item.uri) and self._if_exists == "replace":
                # Another file of this task replaces it.
                return []
            found.append(SavedFile.of_stored(item, stored, self.store))
        return found

    def abort(self) -> None:
        """Abort the copies in flight, and start no others."""
        self._killed.set()
        self.downloads.abort()

    def _claim(self, item: TransferItem, *what: str | None) -> bool:
        """Claim something for a file, and return whether no other file of this task claimed it first."""
        url = hash(item.media.url)
        return not item.key or self._claims.setdefault(hash(what), url) == url

    def _is_copy(self, item: TransferItem, stored: StoredObject) -> bool:
        """Return whether an earlier try saved this very file, and no other file of this task claims the object."""
        requests = (item.request_sha256, stored.metadata.get(REQUEST_SHA256))
        return stored.is_copy_of(item) and all(self._claim(item, item.uri, each) for each in requests)

    def _write(self, item: TransferItem, spool: Spool, mime_type: str, deadline: Deadline) -> SavedFile:
        try:
            etag: str = self._retrying(deadline, None, _is_conflict)(
                self.store.put,
                item,
                spool.body(),
                spool.sha256,
                mime_type,
                replaces=self._if_exists == "replace" and self._claim(item, item.uri),
            )
        except OccupiedKeyError:
            return self._resolve_occupied(item, spool, deadline)
        self._log.info("Saved %s: %s, %d bytes.", item.name, item.uri, spool.size)
        return SavedFile(item, spool.size, spool.sha256, etag, mime_type)

    def _resolve_occupied(self, item: TransferItem, spool: Spool, deadline: Deadline) -> SavedFile:
        """Check the object that S3 refused to replace: it may be our own write, whose response was lost."""
        stored = self.store.head(item.bucket, item.key)
        if stored is None:
            raise ObjectExistsError(
                f"{item.uri} already exists, but cannot be read (s3:GetObject denied), so {item.name} was not saved. Grant "
                "s3:GetObject, or set if_exists='replace'."
            )
        return self._resolve_existing(item, stored, spool.sha256, deadline)

    def _resolve_existing(
        self, item: TransferItem, stored: StoredObject, sha256: str | None, deadline: Deadline
    ) -> SavedFile:
        """Decide what to do about an object at the key. ``sha256`` is the file's, if it is already known."""
        existing = SavedFile.of_stored(item, stored, self.store)
        if (sha256 == existing.sha256 and stored.is_copy_of(item)) or (
            sha256 is None and self._is_copy(item, stored)
        ):
            self._log.info("%s is already saved: %s.", capital(item.name), item.uri)
            return existing
        if self._if_exists == "fail":
            raise ObjectExistsError(
                f"{item.uri} already exists, and if_exists is 'fail': {item.name} was not saved."
            )
        if sha256 is None:
            spool, _ = self._downloaded(item, deadline)
            with spool:
                sha256 = spool.sha256
        if sha256 != existing.sha256:
            raise ObjectExistsError(
                f"{item.uri} already exists with different content: its SHA-256 is {existing.sha256}, that of {item.name} is "
                f"{sha256}. Give the file another key, or set if_exists='replace'."
            )
        self._log.info("%s already exists with identical content: %s.", capital(item.name), item.uri)
        return existing

    def _downloaded(self, item: TransferItem, deadline: Deadline) -> tuple[Spool, str]:
        """Download a file, retrying where that may help."""
        seen: set[str] = set()

        def fetch() -> tuple[Spool, str]:
            if self._killed.is_set():
                raise KilledError(f"The task was terminated before {item.name} was saved.")
            try:
                return self.downloads.fetch(item.name, item.media, deadline)
            except NotAnImageError as error:
                # A page that says "wait" may give way to the file; a page that comes twice won't.
                if error.sha256 in seen:
                    raise FileRefusedError(
                        f"{error.message} The server sent the same content again."
                    ) from None
                seen.add(error.sha256)
                raise

        fetched: tuple[Spool, str] = self._retrying(deadline, item, _is_download_error)(fetch)
        return fetched

    def _retrying(
        self, deadline: Deadline, item: TransferItem | None, is_worth_it: Callable[[BaseException], bool]
    ) -> Retrying:
        """
        Return a ``Retrying`` for a call.

        :param item: The file, if it must still be available; None if it is already downloaded.
        """
        ends = item.media.deletes_at if item is not None else None

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, DownloadError) else None
            seconds = backoff(state.attempt_number, BACKOFF_FIRST, BACKOFF_LIMIT) if asked is None else asked
            # Don't sleep past the file's deletion if that is still ahead by the worker's clock, which may be wrong.
            left = (ends - datetime.now(UTC)).total_seconds() if ends is not None else 0
            return min(seconds, left / 2) if left > 0 else seconds

        def gives_up(state: RetryCallState) -> bool:
            return self._killed.is_set() or state.upcoming_sleep >= deadline.left()

        return Retrying(
            retry=retry_if_exception(is_worth_it),
            wait=wait,
            stop=stop_after_attempt(ATTEMPTS) | gives_up,  # type: ignore[operator]
            before_sleep=self._log_retry,
            sleep=sleep_using_event(self._killed),
            reraise=True,
        )

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._log.warning(
            "%s Attempt %d of %d failed; retrying in %.1f seconds.",
            error.message if isinstance(error, GetimgError) else error,
            state.attempt_number,
            ATTEMPTS,
            state.upcoming_sleep,
        )


def _is_download_error(error: BaseException) -> bool:
    return isinstance(error, DownloadError)


def _is_conflict(error: BaseException) -> bool:
    """Return whether a write collided with a concurrent write (409)."""
    return isinstance(error, ObjectStoreError) and error.code == "ConditionalRequestConflict"
