# SPDX-License-Identifier: Apache-2.0
"""The manifest of a batch: where and how it is written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.quote import quote
from airflow_provider_getimg.s3.keys import check_key
from airflow_provider_getimg.s3.object_options import MANIFEST, task_digest
from airflow_provider_getimg.s3.uris import bucket_and_key

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_getimg.s3.keys import KeyTemplate
    from airflow_provider_getimg.s3.store import S3Store

#: The name of an empty object that is written next to the images, then deleted, before the first request.
WRITE_CHECK = ".getimg-write-check"

# Any character except those that S3 calls safe in a key; includes the slash.
_UNSAFE = re.compile(r"[^A-Za-z0-9!_.*'()=-]")


def location(manifest_key: object, template: KeyTemplate, context: Context) -> tuple[str, str]:
    """
    Return the bucket and the key of the manifest.

    By default, it is stored with the files, in the folder that all their keys share, whatever the placeholders' values.

    :param template: The template of the files' keys.

    :raises InvalidInputError: The bucket and key name no object.
    """
    if manifest_key is None:
        ti = context["ti"]
        mapped = ti.map_index is not None and ti.map_index >= 0
        index = f"-{ti.map_index}" if mapped else ""
        names = (str(ti.dag_id), str(ti.run_id), f"{ti.task_id}{index}")
        path = "/".join(_safe(name) for name in names)
        bucket, key = template.bucket, f"{template.shared_folder}/manifests/{path}.jsonl".lstrip("/")
    else:
        bucket, key = _given(manifest_key, template.bucket)
    check_key(key, "manifest_key")
    return bucket, key


def _safe(name: str) -> str:
    safe = _UNSAFE.sub("_", name)
    return safe if safe.strip(".") else safe.replace(".", "_")


def _given(manifest_key: object, s3_bucket: str) -> tuple[str, str]:
    bucket, key = s3_bucket, manifest_key
    if isinstance(manifest_key, str) and manifest_key.startswith("s3://"):
        bucket, key = bucket_and_key(manifest_key)
    if not isinstance(key, str) or not bucket or not key.strip() or key.endswith("/") or key == "None":
        raise InvalidInputError(
            f"manifest_key must be a key or a full s3://bucket/key, got {quote(manifest_key)}."
        )
    return bucket, key


def write(store: S3Store, bucket: str, key: str, content: bytes, context: Context) -> None:
    """
    Write the manifest the way images are written, replacing an earlier try's. Its metadata identifies the task.

    :raises GetimgError: S3 refused it, or could not be reached.
    """
    store.put_text(bucket, key, content, "application/jsonl", metadata={MANIFEST: _writer(context)})


def _writer(context: Context) -> str:
    ti = context["ti"]
    return task_digest(ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index)


def check_writes(store: S3Store, template: KeyTemplate, bucket: str, key: str) -> None:
    """
    Check that S3 accepts a write where the images go, if the manifest was written elsewhere.

    :param bucket: Where the manifest was written, with ``key``.
    :raises GetimgError: S3 refused it, or could not be reached.
    """
    folder = f"{template.shared_folder}/".lstrip("/")
    if bucket == template.bucket and key.startswith(folder):
        return
    check = f"{folder}{WRITE_CHECK}"
    store.put_text(template.bucket, check, b"", "text/plain")
    store.delete(template.bucket, check)
