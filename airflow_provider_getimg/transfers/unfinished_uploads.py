# SPDX-License-Identifier: Apache-2.0
"""
Multipart uploads that a killed process leaves behind.

S3 keeps (and bills) the parts of an upload that is neither completed nor aborted, and no listing of objects shows
them. Only files of more than one part (5 MiB) are uploaded so. Each key is noted in the task state store before its
upload begins; what is still noted at the next try belongs to a process that is dead, and is aborted.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.execution_time.context import NEVER_EXPIRE
from botocore.exceptions import BotoCoreError, ClientError

from airflow_provider_getimg.api.errors import ObjectStoreError
from airflow_provider_getimg.api.signed_urls import reason

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import TaskStateStoreAccessor
    from airflow.sdk.types import Logger

    from airflow_provider_getimg.transfers.plan import FileCopy
    from airflow_provider_getimg.transfers.s3_store import S3Store

KEY = "getimg_unfinished_uploads"


class UnfinishedUploads:
    """
    The keys to which a multipart upload of this task is open. Safe to use from several threads.

    :param state: The task state store.
    :param log: The task's log.
    """

    def __init__(self, state: TaskStateStoreAccessor, log: Logger) -> None:
        self._state = state
        self._log = log
        self._lock = threading.Lock()
        self._open: set[tuple[str, str]] = set()
        self._doubtful: set[tuple[str, str]] = set()

    def abort_left(self, store: S3Store) -> None:
        """
        Abort the uploads that are noted: at the start of a try those of an earlier one, at its end those in doubt.

        What can't be aborted stays noted, and is told in the log.
        """
        try:
            left = cast("list[list[str]] | None", self._state.get(KEY)) or []
        except Exception as error:
            self._log.warning(
                "The task state store could not be read: %s. Unfinished uploads may be left.", reason(error)
            )
            return
        stay = set()
        for bucket, key in left:
            try:
                for _ in range(store.abort_uploads(bucket, key)):
                    self._log.info("Aborted an upload to s3://%s/%s that was left unfinished.", bucket, key)
            except (ClientError, BotoCoreError) as error:
                stay.add((bucket, key))
                self._log.warning(
                    "An upload to s3://%s/%s that was left unfinished could not be aborted: %s. A lifecycle rule of the "
                    "bucket (AbortIncompleteMultipartUpload) removes such uploads.",
                    bucket,
                    key,
                    reason(error),
                )
        if left:
            with self._lock:
                # So that a note that is written later does not wipe them out.
                self._open, self._doubtful = set(stay), stay
                self._try_to_write()

    def note(self, copy: FileCopy) -> None:
        """
        Note that an upload to this key is about to begin.

        :raises ObjectStoreError: It could not be noted, and must not begin.
        """
        with self._lock:
            self._open.add((copy.bucket, copy.key))
            try:
                self._write()
            except Exception as error:
                raise ObjectStoreError(
                    f"The task state store could not be written, and {copy.uri} was not: {reason(error)}."
                ) from None

    def forget(self, copy: FileCopy) -> None:
        """Note that the upload to this key was completed or aborted. A note that stays does no harm."""
        with self._lock:
            self._open -= {(copy.bucket, copy.key)} - self._doubtful
            self._try_to_write()

    def doubt(self, copy: FileCopy) -> None:
        """Keep the note of this key: there may be an upload to it whose id nobody knows, or that can't be aborted."""
        with self._lock:
            self._doubtful.add((copy.bucket, copy.key))

    def _try_to_write(self) -> None:
        try:
            self._write()
        except Exception as error:
            self._log.warning("The task state store could not be written: %s.", reason(error))

    def _write(self) -> None:
        if self._open:
            value: Any = sorted(list(place) for place in self._open)
            self._state.set(KEY, value, retention=NEVER_EXPIRE)
        else:
            self._state.delete(KEY)
