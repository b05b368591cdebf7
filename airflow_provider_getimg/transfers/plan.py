# SPDX-License-Identifier: Apache-2.0
"""Which files of which generations go to which keys: all checked before the first download."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.media import extension
from airflow_provider_getimg.api.types import Generation, first_fault

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_provider_getimg.api.types import MediaFile

#: S3's limit for a key, in bytes of UTF-8.
KEY_MAX_BYTES = 1024

PLACEHOLDERS = ("generation_id", "index", "extension", "model", "width", "height", "sha256")

# Any digest will do to check a key before the file's own is known: they are of one length.
_SOME_SHA256 = hashlib.sha256().hexdigest()


@dataclass(frozen=True, slots=True)
class KnownMedia:
    """What is known of a file that is saved, in the place of a ``MediaFile``: all but its URL, in a tenth of the memory."""

    mime_type: str
    deletes_at: datetime
    width: int | None = None
    height: int | None = None


# Each is itself: two files may be alike in all that is known of them before a download.
@dataclass(frozen=True, eq=False, slots=True)
class FileCopy:
    """
    One file of a generation and the object that it becomes.

    :param key: The object's key; with ``{sha256}`` unfilled where ``keyed_by_content``.
    :param cost: What its generation cost in USD, if the API told.
    :param prompt_sha256: Digest of the prompt, where it is known.
    :param request_sha256: Fingerprint of the request, where it is known.
    """

    generation_id: str
    index: int
    model: str | None
    media: MediaFile
    bucket: str
    key: str
    cost: str | None = None
    keyed_by_content: bool = False
    prompt_sha256: str | None = None
    request_sha256: str | None = None

    @property
    def uri(self) -> str:
        """The object's ``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """How the file is called in messages."""
        return f"file {self.index} of generation {self.generation_id}"

    def with_content(self, sha256: str) -> FileCopy:
        """Return the copy with its key filled in, now that the content is known."""
        if not self.keyed_by_content:
            return self
        return replace(self, key=self.key.replace("{sha256}", sha256), keyed_by_content=False)


def plan(
    generation: object, s3_key: object, s3_bucket: object, fields: Mapping[str, Any] | None = None
) -> list[FileCopy]:
    """
    Return a copy for each file of each generation.

    :param generation: An answer of the API as a dict, or a list of them.
    :param s3_key: A key with placeholders, or a full ``s3://bucket/key``.
    :param s3_bucket: The bucket where ``s3_key`` is no full URI; None otherwise.
    :param fields: The values of further placeholders, where the request is known as well. It is then too late to find fault
        with a key: what the API did not tell is filled in as ``unknown``, and files that would share a key are told apart by
        their index.
    :raises InvalidInputError: No generation, an unknown placeholder, an unusable key, or one key twice.
    """
    bucket, template = destination(s3_key, s3_bucket)
    copies: dict[str, FileCopy] = {}
    for answer in _generations(generation):
        cost = str(answer.usage.total_cost) if answer.usage else None
        for index, media in enumerate(answer.data):
            key, keyed_by_content = _key(template, answer, index, media, fields)
            if fields is not None and key in copies:
                stem, dot, suffix = key.rpartition(".")
                key = f"{stem}-{index}.{suffix}" if dot and "/" not in suffix else f"{key}-{index}"
            copy = FileCopy(answer.id, index, answer.model, media, bucket, key, cost, keyed_by_content)
            # Files that are keyed by their content share a key if, and only if, they are the same.
            place = f"{key} {copy.name}" if keyed_by_content else key
            if place in copies:
                raise InvalidInputError(
                    f"s3_key gives {copies[place].name} and {copy.name} the same key {key!r}: tell them apart with "
                    "{generation_id} and {index}."
                )
            copies[place] = copy
    return list(copies.values())


def _generations(generation: object) -> list[Generation]:
    if isinstance(generation, Mapping):
        return [_generation(generation, "generation")]
    if isinstance(generation, str) or not isinstance(generation, Sequence):
        raise InvalidInputError(
            f"generation is a {type(generation).__name__}: the answer of a generation (a dict), or a list of them, "
            "is allowed. Pass the upstream task's .output rather than a Jinja text."
        )
    if not generation:
        raise InvalidInputError("generation is an empty list: there is nothing to save.")
    answers: list[Generation] = []
    for position, answer in enumerate(generation):
        name = f"generation[{position}]"
        # A list of outputs, one of which is a mapped task's.
        if isinstance(answer, Sequence) and not isinstance(answer, str):
            answers += [_generation(one, f"{name}[{number}]") for number, one in enumerate(answer)]
        else:
            answers.append(_generation(answer, name))
    return answers


def _generation(answer: object, name: str) -> Generation:
    if not isinstance(answer, Mapping):
        raise InvalidInputError(
            f"{name} is a {type(answer).__name__}: the answer of a generation (a dict) is allowed."
        )
    try:
        return Generation.from_json(dict(answer))
    except ValidationError as error:
        raise InvalidInputError(f"{name} is no answer of a generation: {first_fault(error)}") from None


def destination(s3_key: object, s3_bucket: object) -> tuple[str, str]:
    """
    Return the bucket and the template of the key.

    :raises InvalidInputError: They name no object.
    """
    if not isinstance(s3_key, str) or not s3_key.strip():
        raise InvalidInputError(
            f"s3_key is {s3_key!r}: a key, or a full s3://bucket/key, is allowed, such as "
            "'images/{generation_id}-{index}.{extension}'."
        )
    if s3_key.startswith("s3://"):
        if s3_bucket:
            raise InvalidInputError(
                f"s3_bucket is {s3_bucket!r} and s3_key names a bucket as well ({s3_key!r}): give one of them."
            )
        bucket, _, template = s3_key.removeprefix("s3://").partition("/")
    else:
        bucket, template = str(s3_bucket or ""), s3_key
    if not bucket or not template or template.endswith("/") or "None" in (bucket, template):
        raise InvalidInputError(
            f"s3_key {s3_key!r} and s3_bucket {s3_bucket!r} name no object: give a bucket and a key, or a full "
            "s3://bucket/key."
        )
    return bucket, template


def _key(
    template: str, answer: Generation, index: int, media: MediaFile, fields: Mapping[str, Any] | None
) -> tuple[str, bool]:
    """Fill the template in, and tell whether ``{sha256}`` is left to be filled in later."""
    values: dict[str, Any] = {
        "generation_id": answer.id,
        "index": index,
        "extension": extension(media.mime_type),
        "model": answer.model or "unknown-model",
        "width": media.width,
        "height": media.height,
        "sha256": _SOME_SHA256,
    }
    if fields is not None:
        values = {name: "unknown" if value is None else value for name, value in values.items()} | dict(
            fields
        )
    asked = placeholders(template, tuple(values))
    for name in asked:
        if values[name] is None:
            raise InvalidInputError(
                f"s3_key has {{{name}}}, which the API did not tell for file {index} of generation {answer.id}."
            )
    try:
        key = template.format(**values)
        unfilled = template.format(**(values | {"sha256": "{sha256}"}))
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidInputError(f"s3_key {template!r} can't be filled in: {error}.") from None
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"s3_key gives the key {key!r}, which is no text that can be encoded."
        ) from None
    if ".." in key.split("/"):
        raise InvalidInputError(f"s3_key gives the key {key!r}: a key must not climb with '..'.")
    if size > KEY_MAX_BYTES:
        raise InvalidInputError(
            f"s3_key gives a key of {size} bytes ({key[:60]!r}...): S3 allows {KEY_MAX_BYTES}."
        )
    return unfilled, "sha256" in asked


def placeholders(template: str, allowed: Sequence[str] = PLACEHOLDERS) -> set[str]:
    """
    Return the names of the placeholders in a key.

    :raises InvalidInputError: One of them is not allowed.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InvalidInputError(f"s3_key {template!r} can't be filled in: {error}.") from None
    asked = set()
    for _, field, spec, conversion in parts:
        if field is None:
            continue
        # A format such as {index:03d} is welcome; what reaches into a value, or holds another field, is not.
        if field not in allowed or conversion or "{" in (spec or "") or (field == "sha256" and spec):
            raise InvalidInputError(
                f"s3_key has the unknown placeholder {{{field}}}: {_listed(allowed)} are allowed."
            )
        asked.add(field)
    return asked


def _listed(names: Sequence[str]) -> str:
    braced = [f"{{{name}}}" for name in names]
    return f"{', '.join(braced[:-1])} and {braced[-1]}"
