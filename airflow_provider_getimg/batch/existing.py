# SPDX-License-Identifier: Apache-2.0
"""Finds objects that are already at the rows' keys in S3 before a request is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import ObjectExistsError
from airflow_provider_getimg.batch.report import RowResult
from airflow_provider_getimg.s3.copier import SavedFile
from airflow_provider_getimg.s3.object_options import GENERATION_ID, MODEL, REQUEST_SHA256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk.types import Logger

    from airflow_provider_getimg.batch.rows import Row
    from airflow_provider_getimg.s3.store import S3Store


class Existing:
    """
    The objects already at the rows' keys, left by an earlier run or by a try before a Clear.

    :param store: Where files go.
    :param if_exists: ``skip``, ``replace`` or ``fail``. With ``replace``, no object is looked up.
    :param log: The task's log.
    """

    def __init__(self, store: S3Store, if_exists: str, log: Logger) -> None:
        self._store = store
        self._if_exists = if_exists
        self._log = log
        # The keys that existed at the start of the try; None if they were not listed.
        self._listed: frozenset[str] | None = None

    def list_keys(self, rows: Sequence[Row]) -> None:
        """List the objects at these rows' keys if one listing is cheaper than a HEAD for each."""
        if rows and self._if_exists != "replace":
            self._listed = self._store.existing_keys([row.expected_key for row in rows], rows[0].bucket)

    def find(self, row: Row, *, refresh: bool = False) -> RowResult | None:
        """
        Return the row's result if an object made from the same request is at its key; None if no object is.

        :param refresh: Whether the object may have been written since the try began.

        :raises ObjectExistsError: Another object is at its key: an image could not be saved there, so none is generated.
        """
        if self._if_exists == "replace" or row.expected_key is None:
            return None
        if not refresh and self._listed is not None and row.expected_key not in self._listed:
            return None
        uri = row.expected_item().uri
        stored = self._store.head(row.bucket, row.expected_key, list_fallback=True)
        if stored is None:
            return None
        if self._if_exists == "fail":
            raise ObjectExistsError(
                f"{uri} already exists, and if_exists is 'fail'. No request was sent.", billed="no"
            )
        if not stored.readable:
            raise ObjectExistsError(
                f"{uri} already exists but cannot be read (s3:GetObject denied), so its origin is unknown. No request was "
                "sent. Grant s3:GetObject, give the row another key, or set if_exists='replace'.",
                billed="no",
            )
        if stored.metadata.get(REQUEST_SHA256) != row.request.fingerprint:
            raise ObjectExistsError(
                f"{uri} already exists, and was not made from this request. No request was sent. Give the row another key, "
                "or set if_exists='replace'.",
                billed="no",
            )
        item = row.existing_item(
            stored.metadata.get(GENERATION_ID), stored.metadata.get(MODEL), stored.mime_type
        )
        file = SavedFile.of_stored(item, stored, self._store)
        self._log.info("%s: %s already exists. Nothing is sent.", row.name, item.uri)
        return RowResult(row, "reused", [file], item.generation_id)
