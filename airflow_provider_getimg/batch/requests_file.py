# SPDX-License-Identifier: Apache-2.0
"""Reads the requests of a batch from a list, or from a JSON Lines file in S3."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.quote import quote
from airflow_provider_getimg.api.requests import REQUEST_MAX_BYTES
from airflow_provider_getimg.s3.uris import bucket_and_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_s3 import S3Client

#: All rows are kept in memory, at about 2 KB each plus their content. At 20 requests a minute, this many take three and a half days.
MAX_REQUESTS = 100_000
REQUESTS_FILE_MAX_BYTES = 256 * 1024 * 1024
#: A whole request, including references as data URLs, plus whatever else is on its line.
LINE_MAX_BYTES = REQUEST_MAX_BYTES + 1024 * 1024
_BUFFER_BYTES = 1024 * 1024


def listed(
    requests: object, s3_client: Callable[[], S3Client], add_fault: Callable[[str], None]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """
    Yield each request with its location for messages.

    :param requests: A list of dicts, or the ``s3://bucket/key`` of a JSON Lines file.
    :param s3_client: Returns a client; called only if a file is to be read.
    :param add_fault: Called for each entry that is not a dict.
    :raises InvalidInputError: There is no such list or file, or it is too large.
    :raises UnavailableError: S3 could not be reached.
    """
    if isinstance(requests, str) and requests.startswith("s3://"):
        for number, request in read_lines("requests", requests, s3_client, add_fault):
            yield f"{requests} line {number}", request
        return
    if isinstance(requests, str | bytes | Mapping) or not isinstance(requests, Sequence):
        raise InvalidInputError(
            f"requests must be a list of dicts, or the s3://bucket/key of a JSON Lines file, got {quote(requests)}. Pass an "
            "upstream task's .output rather than a Jinja string."
        )
    if len(requests) > MAX_REQUESTS:
        raise InvalidInputError(f"requests must have at most {MAX_REQUESTS} entries, got {len(requests)}.")
    for number, request in enumerate(requests):
        if isinstance(request, Mapping):
            yield f"requests[{number}]", request
        else:
            add_fault(
                f"requests[{number}] must be a dict with at least model and prompt, got {quote(request)}."
            )


def read_lines(
    name: str, uri: str, s3_client: Callable[[], S3Client], add_fault: Callable[[str], None]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """
    Yield each object of a JSON Lines file in S3 with its line number.

    :param name: The parameter that names the file, for messages.
    :param add_fault: Called for each line that is not an object.
    :raises InvalidInputError: There is no such file, or it is too large.
    :raises UnavailableError: S3 could not be reached.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    from airflow_provider_getimg.s3.store_errors import read_error

    bucket, key = bucket_and_key(uri)
    if not bucket or not key:
        raise InvalidInputError(f"{name} must be s3://bucket/key, got {quote(uri)}.")
    client = s3_client()
    try:
        response = client.get_object(Bucket=bucket, Key=key)
        with io.BufferedReader(cast("io.RawIOBase", response["Body"]), _BUFFER_BYTES) as file:
            if response["ContentLength"] > REQUESTS_FILE_MAX_BYTES:
                raise InvalidInputError(
                    f"{name} ({uri}) must be at most {REQUESTS_FILE_MAX_BYTES} bytes (256 MiB), got "
                    f"{response['ContentLength']}."
                )
            # Read all lines before yielding the first: a file that is too long is refused immediately.
            read = list(_lines(name, uri, file, add_fault))
    except (ClientError, BotoCoreError) as error:
        raise read_error(f"{name} ({uri})", error) from None
    yield from read


def _lines(
    name: str, uri: str, file: BinaryIO, add_fault: Callable[[str], None]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    while line := file.readline(LINE_MAX_BYTES + 1):
        number += 1
        if len(line) > LINE_MAX_BYTES:
            raise InvalidInputError(f"{uri} line {number} must be at most {LINE_MAX_BYTES} bytes, got more.")
        if number > MAX_REQUESTS:
            raise InvalidInputError(f"{name} ({uri}) must have at most {MAX_REQUESTS} lines, got more.")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if isinstance(request, Mapping):
            yield number, request
        else:
            text = line[:200].decode(errors="replace").strip()
            add_fault(
                f"{uri} line {number} must be a JSON object with at least model and prompt, got {quote(text)}."
            )
