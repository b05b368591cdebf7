# SPDX-License-Identifier: Apache-2.0
"""Reference images as users give them become what the API takes: HTTPS URLs and data URLs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.media import image_type
from airflow_provider_getimg.api.types import (
    MAX_REFERENCE_IMAGES,
    REFERENCE_IMAGE_MAX_BYTES,
    REQUEST_MAX_BYTES,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def as_sent(images: object, aws_conn_id: str | None) -> list[Any] | None:
    """
    Return the ``images`` of a request with plain URLs as dicts and ``s3://`` objects as data URLs.

    :param images: A list of ``{url, role}`` or of URLs; None for none.
    :param aws_conn_id: The AWS connection that reads ``s3://bucket/key`` images.
    :raises InvalidInputError: Not a list, too many, or an object that is missing, too large or no image.
    """
    if images is None:
        return None
    if isinstance(images, str | Mapping) or not isinstance(images, Sequence):
        raise InvalidInputError(
            f"images is a {type(images).__name__}: a list of URLs, or of {{'url': ..., 'role': ...}}, is allowed."
        )
    if len(images) > MAX_REFERENCE_IMAGES:
        raise InvalidInputError(
            f"images holds {len(images)} images: at most {MAX_REFERENCE_IMAGES} are allowed."
        )
    entries = [{"url": image} if isinstance(image, str) else image for image in images]
    if not any(_is_in_s3(entry) for entry in entries):
        return entries

    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    client: S3Client = S3Hook(aws_conn_id=aws_conn_id).get_conn()
    room = REQUEST_MAX_BYTES
    sent: list[Any] = []
    for position, entry in enumerate(entries):
        if _is_in_s3(entry):
            data_url = _read(client, entry["url"], position)
            room -= len(data_url)
            if room < 0:
                raise InvalidInputError(
                    f"images[{position}] ({entry['url']}) makes the request larger than {REQUEST_MAX_BYTES} bytes "
                    "(25 MiB), which is what the API takes for all images together once base64-encoded."
                )
            entry = {**entry, "url": data_url}
        sent.append(entry)
    return sent


def _is_in_s3(entry: object) -> bool:
    return isinstance(entry, Mapping) and str(entry.get("url", "")).startswith("s3://")


def _read(client: S3Client, url: str, position: int) -> str:
    from botocore.exceptions import BotoCoreError, ClientError

    name = f"images[{position}] ({url})"
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise InvalidInputError(f"{name} names no object: s3://bucket/key is allowed.")
    try:
        answer = client.get_object(Bucket=bucket, Key=key)
        with answer["Body"] as body:
            size = answer["ContentLength"]
            if size > REFERENCE_IMAGE_MAX_BYTES:
                raise InvalidInputError(
                    f"{name} is {size} bytes: at most {REFERENCE_IMAGE_MAX_BYTES} (10 MiB) are allowed."
                )
            content = body.read()
    except (ClientError, BotoCoreError) as error:
        raise InvalidInputError(f"{name} can't be read from S3: {error}.") from None
    mime_type = image_type(content)
    if mime_type is None:
        raise InvalidInputError(f"{name} is no PNG, JPEG or WebP image, by its first bytes.")
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
