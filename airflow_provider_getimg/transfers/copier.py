# SPDX-License-Identifier: Apache-2.0
"""Copy one file from its signed URL into S3, and be sure of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception, sleep_using_event, stop_after_attempt

from airflow_provider_getimg.api.errors import (
    DownloadError,
    GetimgError,
    KilledError,
    ObjectExistsError,
    ObjectStoreError,
)
from airflow_provider_getimg.retry import backoff
from airflow_provider_getimg.transfers.download import Deadline, capital
from airflow_provider_getimg.transfers.s3_upload import PART_BYTES, OccupiedKeyError, S3Upload

if TYPE_CHECKING:
    import threading

    from airflow.sdk.types import Logger
    from tenacity import RetryCallState

    from airflow_provider_getimg.transfers.download import Downloads
    from airflow_provider_getimg.transfers.plan import FileCopy
    from airflow_provider_getimg.transfers.s3_store import S3Store, StoredObject
    from airflow_provider_getimg.transfers.unfinished_uploads import UnfinishedUploads

IF_EXISTS = ("skip", "replace", "fail")

#: A download is free to repeat: so often within a try, waiting at most so many seconds in between.
ATTEMPTS = 5
BACKOFF_FIRST = 0.5
BACKOFF_LIMIT = 20.0


@dataclass(frozen=True, slots=True)
class Saved:
    """
    A file that lies in S3.

    :param copied: False where it lay there already.
    """

    copy: FileCopy
    size: int
    sha256: str
    etag: str
    copied: bool

    def row(self) -> dict[str, Any]:
        """Return the file's row of the XCom."""
        return {
            "uri": self.copy.uri,
            "bucket": self.copy.bucket,
            "key": self.copy.key,
            "bytes": self.size,
            "sha256": self.sha256,
            "etag": self.etag,
            "mime_type": self.copy.media.mime_type,
            "width": self.copy.media.width,
            "height": self.copy.media.height,
            "generation_id": self.copy.generation_id,
            "index": self.copy.index,
            "model": self.copy.model,
        }


@dataclass(frozen=True)
class _Content:
    """What a download brought: its digest, and its bytes where they fit into one part."""

    sha256: str
    body: bytes | None


class Copier:
    """
    Copies files, each in any thread.

    :param store: S3 with the user's options.
    :param downloads: The download session.
    :param if_exists: ``skip``, ``replace`` or ``fail``: what to do where an object lies at the key.
    :param unfinished: Where multipart uploads are noted while they are open.
    :param killed: Set when the task is told to end.
    :param log: The task's log.
    """

    def __init__(
        self,
        store: S3Store,
        downloads: Downloads,
        *,
        if_exists: str,
        unfinished: UnfinishedUploads | None,
        killed: threading.Event,
        log: Logger,
    ) -> None:
        self._store = store
        self._downloads = downloads
        self._if_exists = if_exists
        self._unfinished = unfinished
        self._killed = killed
        self._log = log

    def save(self, copy: FileCopy, *, is_new: bool = False) -> Saved:
        """
        Save a file, or find that it is saved. Downloads that fail are repeated, within the connection's timeout.

        :param is_new: Whether nothing lay at the key a moment ago: the look before the download is spared.
        :raises TransferError: Its message says which file failed, why, and what to do.
        """
        deadline = Deadline(self._downloads.timeout)

        def gives_up(state: RetryCallState) -> bool:
            ends = min(deadline.left(), (copy.media.deletes_at - datetime.now(UTC)).total_seconds())
            return self._killed.is_set() or state.upcoming_sleep >= ends

        retrying = Retrying(
            retry=retry_if_exception(_is_worth_repeating),
            wait=_wait,
            stop=stop_after_attempt(ATTEMPTS) | gives_up,  # type: ignore[operator]
            before_sleep=self._tell,
            sleep=sleep_using_event(self._killed),
            reraise=True,
        )
        saved: Saved = retrying(self._save, copy, deadline, is_new)
        return saved

    def _save(self, copy: FileCopy, deadline: Deadline, is_new: bool) -> Saved:
        if self._killed.is_set():
            raise KilledError(f"The task was told to end before {copy.name} was saved.")
        content = None
        if copy.keyed_by_content:
            content = self._read(copy, deadline)
            copy = copy.with_content(content.sha256)
        if self._if_exists != "replace" and not is_new:
            stored = self._store.look(copy)
            if stored is not None:
                return self._settle(copy, stored, content.sha256 if content else None, deadline)
        return self._upload(copy, deadline, content)

    def _upload(self, copy: FileCopy, deadline: Deadline, content: _Content | None) -> Saved:
        upload = S3Upload(
            self._store,
            copy,
            self._store.object_args(copy),
            replaces=self._if_exists == "replace",
            unfinished=self._unfinished,
        )
        try:
            with upload:
                if content is not None and content.body is not None:
                    upload.write(content.body)
                else:
                    with self._downloads.open(copy, deadline) as download:
                        upload.expect(download.size)
                        for chunk in download.chunks:
                            upload.write(chunk)
                    if content is not None and content.sha256 != upload.sha256:
                        raise DownloadError(f"Two downloads of {copy.name} brought different bytes.")
                etag = upload.complete()
        except OccupiedKeyError:
            return self._settle_occupied(copy, upload.sha256, deadline)
        self._log.info("Saved %s: %s, %d bytes.", copy.name, copy.uri, upload.size)
        return Saved(copy, upload.size, upload.sha256, etag, copied=True)

    def _settle_occupied(self, copy: FileCopy, sha256: str, deadline: Deadline) -> Saved:
        """Look at what S3 refused to replace: it may be our own upload, whose answer was lost."""
        stored = self._store.look(copy)
        if stored is None:
            raise ObjectExistsError(
                f"{copy.uri} exists already, and what it is can't be seen: {copy.name} was not saved. Permit "
                "s3:GetObject, or set if_exists='replace'."
            )
        return self._settle(copy, stored, sha256, deadline)

    def _settle(self, copy: FileCopy, stored: StoredObject, sha256: str | None, deadline: Deadline) -> Saved:
        """Decide about an object that lies at the key. ``sha256`` is the file's, where it is known already."""
        theirs = stored.sha256 or self._store.sha256_of(copy)
        if stored.is_copy_of(copy) and sha256 in (None, theirs):
            self._log.info("%s is saved already: %s.", capital(copy.name), copy.uri)
            return Saved(copy, stored.size, theirs, stored.etag, copied=False)
        if self._if_exists == "fail":
            raise ObjectExistsError(
                f"{copy.uri} exists already, and if_exists is 'fail': {copy.name} was not saved."
            )
        ours = sha256 or self._read(copy, deadline).sha256
        if ours != theirs:
            raise ObjectExistsError(
                f"{copy.uri} exists already with other content: its SHA-256 is {theirs}, that of {copy.name} is "
                f"{ours}. Give the file another key, or set if_exists='replace'."
            )
        self._log.info("%s lies there already, byte for byte: %s.", capital(copy.name), copy.uri)
        return Saved(copy, stored.size, theirs, stored.etag, copied=False)

    def _read(self, copy: FileCopy, deadline: Deadline) -> _Content:
        """Download a file for its digest; keep its bytes where they are few."""
        digest, kept, size = hashlib.sha256(), bytearray(), 0
        with self._downloads.open(copy, deadline) as download:
            for chunk in download.chunks:
                digest.update(chunk)
                size += len(chunk)
                if size <= PART_BYTES:
                    kept += chunk
                else:
                    kept.clear()
        return _Content(digest.hexdigest(), bytes(kept) if size <= PART_BYTES else None)

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._log.warning(
            "%s Attempt %d of %d, again in %.1f seconds.",
            error.message if isinstance(error, GetimgError) else error,
            state.attempt_number,
            ATTEMPTS,
            state.upcoming_sleep,
        )


def _is_worth_repeating(error: BaseException) -> bool:
    """Tell whether another attempt may help: a download, or a write at the same moment as somebody else's (409)."""
    conflict = isinstance(error, ObjectStoreError) and error.code == "ConditionalRequestConflict"
    return conflict or isinstance(error, DownloadError)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, DownloadError) else None
    return backoff(state.attempt_number, BACKOFF_FIRST, BACKOFF_LIMIT) if asked is None else asked
