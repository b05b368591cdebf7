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

    def abort_left(self, store: S3Store) -> None:
        """Abort the uploads that an earlier try left open. What can't be aborted is told in the log."""
        left = cast("list[list[str]] | None", self._state.get(KEY))
        if not left:
            return
        for bucket, key in left:
            try:
                self._abort_all(store, bucket, key)
            except (ClientError, BotoCoreError) as error:
                self._log.warning(
                    "An upload to s3://%s/%s that an earlier try left unfinished could not be aborted: %s. A lifecycle "
                    "rule of the bucket (AbortIncompleteMultipartUpload) removes such uploads.",
                    bucket,
                    key,
                    error,
                )
        self._state.delete(KEY)

    def note(self, copy: FileCopy) -> None:
        """Note that an upload to this key is about to begin."""
        with self._lock:
            self._open.add((copy.bucket, copy.key))
            self._write()

    def forget(self, copy: FileCopy) -> None:
        """Note that the upload to this key was completed or aborted."""
        with self._lock:
            self._open.discard((copy.bucket, copy.key))
            self._write()

    def _abort_all(self, store: S3Store, bucket: str, key: str) -> None:
        pages = store.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key)
        for page in pages:
            for upload in page.get("Uploads", []):
                if upload["Key"] == key:
                    store.client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])
                    self._log.info(
                        "Aborted the upload to s3://%s/%s that an earlier try left unfinished.", bucket, key
                    )

    def _write(self) -> None:
        if self._open:
            value: Any = sorted(list(place) for place in self._open)
            self._state.set(KEY, value, retention=NEVER_EXPIRE)
        else:
            self._state.delete(KEY)
