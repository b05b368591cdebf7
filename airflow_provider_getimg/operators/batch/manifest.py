# SPDX-License-Identifier: Apache-2.0
"""The manifest of a batch: where it goes, and how it gets there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.transfers.plan import KEY_MAX_BYTES, destination
from airflow_provider_getimg.transfers.s3_store import object_error

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_getimg.transfers.s3_store import S3Store

# What S3 calls safe in a key, but for the slash.
_UNSAFE = re.compile(r"[^A-Za-z0-9!_.*'()=-]")


def place(manifest_key: object, s3_key: object, s3_bucket: object, context: Context) -> tuple[str, str]:
    """
    Return the bucket and the key of the manifest.

    By default it lies beside the files: in the folder that their keys share, whatever their placeholders say.

    :raises InvalidInputError: They name no object.
    """
    bucket, template = destination(s3_key, s3_bucket)
    if manifest_key is None:
        ti = context["ti"]
        mapped = ti.map_index is not None and ti.map_index >= 0
        index = f"-{ti.map_index}" if mapped else ""
        folder = template.partition("{")[0].rpartition("/")[0]
        names = (str(ti.dag_id), str(ti.run_id), f"{ti.task_id}{index}")
        path = "/".join(_UNSAFE.sub("_", name) for name in names)
        key = f"{folder}/manifests/{path}.jsonl".lstrip("/")
    else:
        full = isinstance(manifest_key, str) and manifest_key.startswith("s3://")
        try:
            bucket, key = destination(manifest_key, None if full else bucket)
        except InvalidInputError:
            raise InvalidInputError(
                f"manifest_key is {manifest_key!r}: a key, or a full s3://bucket/key, is allowed."
            ) from None
    if len(key.encode()) > KEY_MAX_BYTES or ".." in key.split("/"):
        raise InvalidInputError(f"manifest_key gives the key {key[:60]!r}...: S3 can't take it.")
    return bucket, key


def write(store: S3Store, bucket: str, key: str, content: bytes) -> str:
    """
    Write the manifest over the one of an earlier try, and return its URI.

    :raises ObjectStoreError: S3 refused it.
    """
    uri = f"s3://{bucket}/{key}"
    try:
        store.put(bucket, key, content, "application/jsonl")
    except (ClientError, BotoCoreError) as error:
        raise object_error("store", bucket, uri, error) from None
    return uri
