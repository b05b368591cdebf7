# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from airflow_provider_getimg.api.types import MediaFile
from airflow_provider_getimg.s3.object_options import GENERATION_ID, INDEX, REQUEST_SHA256
from airflow_provider_getimg.s3.plan import TransferItem
from airflow_provider_getimg.s3.store import StoredObject


def item(request_sha256: str | None) -> TransferItem:
    media = MediaFile(url="https://api.test/f", mime_type="image/png")
    return TransferItem("req-1", 0, None, media, "bucket", "a.png", request_sha256=request_sha256)


@pytest.mark.parametrize(
    ("stored", "of_item", "expected"),
    [("aa", "aa", True), ("aa", "bb", False), (None, "aa", True), ("aa", None, True)],
)
def test_object_of_another_request_is_not_a_copy_even_if_the_api_repeats_an_id(stored, of_item, expected):
    metadata = {GENERATION_ID: "req-1", INDEX: "0"} | ({REQUEST_SHA256: stored} if stored else {})
    found = StoredObject(size=1, etag="", metadata=metadata, sha256=None)
    assert found.is_copy_of(item(of_item)) is expected
