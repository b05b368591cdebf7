# SPDX-License-Identifier: Apache-2.0
"""The rows of a batch: read, completed with the defaults, and all checked before anything is sent."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_getimg.api.errors import InvalidInputError, UnavailableError
from airflow_provider_getimg.operators.written_request import FIELDS, WrittenRequest
from airflow_provider_getimg.transfers.plan import PLACEHOLDERS as FILE_PLACEHOLDERS
from airflow_provider_getimg.transfers.plan import (
    FileCopy,
    KnownMedia,
    destination,
    placeholders,
    plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.api.types import MediaFile

LABELS = "labels"
REQUESTS_FILE_MAX_BYTES = 256 * 1024 * 1024

#: Placeholders whose values only an answer tells.
_TOLD_BY_THE_ANSWER = frozenset({"generation_id", "sha256", "width", "height"})
#: What stands for an answer while keys are checked.
_SOME_ANSWER = {
    "id": f"img_{'0' * 24}",
    "data": [
        {
            "url": "https://x",
            "mime_type": "",
            "deletes_at": "2100-01-01T00:00Z",
            "width": 99999,
            "height": 99999,
        }
    ],
}
# Faults that are told one by one: the rest is a number.
_FAULTS_TOLD = 3


@dataclass(frozen=True, eq=False)
class Row:
    """
    One image of a batch.

    :param index: Its place in the list, from 0.
    :param request: What is asked for.
    :param labels: The user's own names for it.
    :param id: The same in each try: the request's fingerprint, and a number where several rows ask for the same.
    :param bucket: Where its files go.
    :param template: The template of their keys.
    """

    index: int
    request: WrittenRequest
    labels: Mapping[str, Any]
    id: str
    bucket: str
    template: str

    @property
    def name(self) -> str:
        """How the row is called in messages."""
        return f"Row {self.index}"

    @property
    def _fields(self) -> dict[str, Any]:
        """What its placeholders stand for, beside those that its files know themselves."""
        request = self.request.checked
        told = {name: getattr(request, name) for name in FIELDS if name != "images"}
        told["output_format"] = request.output_format or "jpeg"
        return {
            **{name: "default" if value is None else value for name, value in told.items()},
            **self.labels,
            "row": self.index,
        }

    @property
    def prompt_sha256(self) -> str:
        """A digest of the prompt, in hex."""
        return hashlib.sha256(self.request.checked.prompt.encode()).hexdigest()

    def copies(self, answer: Mapping[str, Any]) -> list[FileCopy]:
        """Return where the files of its answer go."""
        return [
            replace(copy, prompt_sha256=self.prompt_sha256, request_sha256=self.request.fingerprint)
            for copy in plan(answer, self.template, self.bucket, self._fields)
        ]

    @cached_property
    def expected_key(self) -> str | None:
        """The key of its first file; None where only the answer tells."""
        # The key alone is kept: of thousands of rows, all else would add up.
        if placeholders(self.template, (*FILE_PLACEHOLDERS, *self._fields)) & _TOLD_BY_THE_ANSWER:
            return None
        return self.some_copy().key

    @property
    def has_key_of_its_own(self) -> bool:
        """Whether its key is like no other row's, whatever they ask for."""
        asked = placeholders(self.template, (*FILE_PLACEHOLDERS, *self._fields))
        return bool(asked & {"generation_id", "sha256"})

    def some_copy(self, *, told: bool = True) -> FileCopy:
        """
        Return where a file would go.

        :param told: Whether its answer tells the size, as answers do, but need not.
        """
        [media] = _SOME_ANSWER["data"]
        if not told:
            media = {**media, "width": None, "height": None}  # type: ignore[dict-item]
        mime_type = f"image/{self._fields['output_format']}"
        answer = {
            **_SOME_ANSWER,
            "model": self.request.checked.model,
            "data": [{**media, "mime_type": mime_type}],  # type: ignore[dict-item]
        }
        return self.copies(answer)[0]

    def made_before(self, generation_id: str | None, model: str | None, mime_type: str | None) -> FileCopy:
        """Return the file that lies at its key, with what the object itself tells."""
        copy = self.some_copy()
        media = cast("MediaFile", KnownMedia(mime_type or copy.media.mime_type, copy.media.deletes_at))
        return replace(copy, generation_id=generation_id or "unknown", model=model, media=media)

    def shown(self) -> dict[str, Any]:
        """Return the request for people."""
        shown = self.request.shown()
        return {**shown, LABELS: dict(self.labels)} if self.labels else shown


@dataclass
class _Faults:
    """What is wrong with rows, gathered so that all of it can be mended at once."""

    found: list[str] = field(default_factory=list)

    def check(self) -> None:
        """
        Check that nothing is wrong.

        :raises InvalidInputError: Something is.
        """
        if not self.found:
            return
        more = len(self.found) - _FAULTS_TOLD
        told = " ".join(self.found[:_FAULTS_TOLD])
        raise InvalidInputError(f"{told} And {more} more." if more > 0 else told)


def read_rows(
    requests: object,
    defaults: object,
    s3_key: object,
    s3_bucket: object,
    s3_client: Callable[[], S3Client],
) -> list[Row]:
    """
    Return the rows of a batch.

    :param requests: A list of dicts, or the ``s3://bucket/key`` of a JSON Lines file.
    :param defaults: Fields that they share; None for none.
    :param s3_client: Called for a client where a file is to be read.
    :raises InvalidInputError: Any row, or any key, can't be used. It names the first ones.
    :raises UnavailableError: S3 could not be asked for the file.
    """
    bucket, template = destination(s3_key, s3_bucket)
    shared = _checked_defaults(defaults)
    faults = _Faults()
    rows: list[Row] = []
    asked: Counter[str] = Counter()
    for index, (where, fields) in enumerate(_listed(requests, s3_client)):
        try:
            request, labels = _request({**shared, **fields, LABELS: _labels(shared, fields)})
            row = Row(index, request, labels, "", bucket, template)
            row.some_copy()
            row.some_copy(told=False)
        except InvalidInputError as error:
            faults.found.append(f"{where}: {error.message}")
            continue
        except UnicodeEncodeError:
            faults.found.append(f"{where} holds text that can't be encoded (half of a surrogate pair).")
            continue
        digest = request.fingerprint[:32]
        rows.append(replace(row, id=f"{digest}-{asked[digest]}"))
        asked[digest] += 1
    faults.check()
    _check_keys(rows)
    return rows


def _check_keys(rows: Sequence[Row]) -> None:
    places: dict[str, Row] = {}
    for row in rows:
        if row.has_key_of_its_own:
            return
        # Width and height tell rows apart by chance alone.
        key = row.some_copy().key
        if key in places:
            raise InvalidInputError(
                f"s3_key gives rows {places[key].index} and {row.index} the same key {key!r}: tell them apart "
                "with {row}, a field in which they differ, or {generation_id}."
            )
        places[key] = row


def _request(fields: Mapping[str, Any]) -> tuple[WrittenRequest, dict[str, Any]]:
    labels = fields[LABELS]
    reserved = sorted(set(labels) & {*FIELDS, *FILE_PLACEHOLDERS, "row"})
    if reserved:
        raise InvalidInputError(f"labels holds {reserved[0]!r}, which is a placeholder of its own.")
    unknown = sorted(str(name) for name in set(fields) - {*FIELDS, LABELS})
    if unknown:
        raise InvalidInputError(
            f"{unknown[0]} is not a known field: {', '.join(FIELDS)} and {LABELS} are allowed."
        )
    return WrittenRequest({name: fields[name] for name in FIELDS if name in fields}), labels


def _labels(shared: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    for source in (shared, fields):
        own = source.get(LABELS) or {}
        plain = isinstance(own, Mapping) and all(
            isinstance(name, str)
            and isinstance(value, str | int | float)
            and (not isinstance(value, float) or math.isfinite(value))
            for name, value in own.items()
        )
        if not plain:
            raise InvalidInputError(
                "labels is no dict of texts and numbers: names of your own are allowed, such as {'sku': 'A-17'}."
            )
        labels |= own
    return labels


def _checked_defaults(defaults: object) -> Mapping[str, Any]:
    if defaults is None:
        return {}
    if not isinstance(defaults, Mapping):
        raise InvalidInputError(
            f"defaults is a {type(defaults).__name__}: a dict of the fields that the requests share is allowed."
        )
    return defaults


def _listed(requests: object, s3_client: Callable[[], S3Client]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each request with its place, for messages."""
    if isinstance(requests, str) and requests.startswith("s3://"):
        listed = _lines(requests, s3_client())
    elif isinstance(requests, str | Mapping) or not isinstance(requests, Sequence):
        raise InvalidInputError(
            f"requests is a {type(requests).__name__}: a list of dicts, or the s3://bucket/key of a JSON Lines file, is "
            "allowed. Pass an upstream task's .output rather than a Jinja text."
        )
    else:
        listed = ((f"requests[{number}]", request) for number, request in enumerate(requests))
    for where, request in listed:
        if not isinstance(request, Mapping):
            raise InvalidInputError(
                f"{where} is a {type(request).__name__}: a dict with at least model and prompt is allowed."
            )
        yield where, request


def _lines(uri: str, client: S3Client) -> Iterator[tuple[str, Any]]:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise InvalidInputError(f"requests is {uri!r}, which names no object: s3://bucket/key is allowed.")
    try:
        answer = client.get_object(Bucket=bucket, Key=key)
        if answer["ContentLength"] > REQUESTS_FILE_MAX_BYTES:
            raise InvalidInputError(
                f"requests ({uri}) is {answer['ContentLength']} bytes: at most {REQUESTS_FILE_MAX_BYTES} (256 MiB) are "
                "allowed."
            )
        content = answer["Body"].read()
    except (ClientError, BotoCoreError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        status = error.response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(error, ClientError) else 0
        kind = InvalidInputError if status in (400, 403, 404) else UnavailableError
        raise kind(f"requests ({uri}) can't be read from S3: {reason}.") from None
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield f"{uri} line {number}", json.loads(line)
            except (ValueError, RecursionError):
                raise InvalidInputError(
                    f"{uri} line {number} is not JSON: one object a line is allowed."
                ) from None
