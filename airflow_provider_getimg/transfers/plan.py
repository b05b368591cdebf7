# SPDX-License-Identifier: Apache-2.0
"""Which files of which generations go to which keys: all checked before the first download."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.media import extension
from airflow_provider_getimg.api.types import Generation, first_fault

if TYPE_CHECKING:
    from airflow_provider_getimg.api.types import MediaFile

#: S3's limit for a key, in bytes of UTF-8.
KEY_MAX_BYTES = 1024

PLACEHOLDERS = ("generation_id", "index", "extension", "model")


@dataclass(frozen=True)
class FileCopy:
    """One file of a generation and the object that it becomes."""

    generation_id: str
    index: int
    model: str | None
    media: MediaFile
    bucket: str
    key: str

    @property
    def uri(self) -> str:
        """The object's ``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """How the file is called in messages."""
        return f"file {self.index} of generation {self.generation_id}"


def plan(generation: object, s3_key: object, s3_bucket: object) -> list[FileCopy]:
    """
    Return a copy for each file of each generation.

    :param generation: An answer of the API as a dict, or a list of them.
    :param s3_key: A key with placeholders, or a full ``s3://bucket/key``.
    :param s3_bucket: The bucket where ``s3_key`` is no full URI; None otherwise.
    :raises InvalidInputError: No generation, an unknown placeholder, an unusable key, or one key twice.
    """
    bucket, template = _destination(s3_key, s3_bucket)
    copies: dict[str, FileCopy] = {}
    for answer in _generations(generation):
        for index, media in enumerate(answer.data):
            key = _key(template, answer, index, media)
            copy = FileCopy(answer.id, index, answer.model, media, bucket, key)
            if key in copies:
                raise InvalidInputError(
                    f"s3_key gives {copies[key].name} and {copy.name} the same key {key!r}: tell them apart with "
                    "{generation_id} and {index}."
                )
            copies[key] = copy
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
    return [_generation(answer, f"generation[{position}]") for position, answer in enumerate(generation)]


def _generation(answer: object, name: str) -> Generation:
    if not isinstance(answer, Mapping):
        raise InvalidInputError(
            f"{name} is a {type(answer).__name__}: the answer of a generation (a dict) is allowed."
        )
    try:
        return Generation.from_json(dict(answer))
    except ValidationError as error:
        raise InvalidInputError(f"{name} is no answer of a generation: {first_fault(error)}") from None


def _destination(s3_key: object, s3_bucket: object) -> tuple[str, str]:
    if not isinstance(s3_key, str) or not s3_key.strip():
        raise InvalidInputError(
            f"s3_key is {s3_key!r}: a key, or a full s3://bucket/key, is allowed, such as 'images/{{generation_id}}"
            "-{index}.{extension}'."
        )
    if s3_key.startswith("s3://"):
        if s3_bucket:
            raise InvalidInputError(
                f"s3_bucket is {s3_bucket!r} and s3_key names a bucket as well ({s3_key!r}): give one of them."
            )
        bucket, _, template = s3_key.removeprefix("s3://").partition("/")
    else:
        bucket, template = str(s3_bucket or ""), s3_key
    if not bucket or not template:
        raise InvalidInputError(
            f"s3_key {s3_key!r} and s3_bucket {s3_bucket!r} name no object: give a bucket and a key, or a full "
            "s3://bucket/key."
        )
    return bucket, template


def _key(template: str, answer: Generation, index: int, media: MediaFile) -> str:
    values: dict[str, Any] = {
        "generation_id": answer.id,
        "index": index,
        "extension": extension(media.mime_type),
        "model": answer.model or "unknown-model",
    }
    try:
        for _, field, _, conversion in string.Formatter().parse(template):
            if field is not None and (field not in values or conversion):
                raise InvalidInputError(
                    f"s3_key has the unknown placeholder {{{field}}}: {_listed(PLACEHOLDERS)} are allowed."
                )
        key = template.format(**values)
    except (ValueError, LookupError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"s3_key {template!r} can't be filled in: {error}.") from None
    if ".." in key.split("/"):
        raise InvalidInputError(f"s3_key gives the key {key!r}: a key must not climb with '..'.")
    if len(key.encode()) > KEY_MAX_BYTES:
        raise InvalidInputError(
            f"s3_key gives a key of {len(key.encode())} bytes ({key[:60]!r}...): S3 allows {KEY_MAX_BYTES}."
        )
    return key


def _listed(names: Sequence[str]) -> str:
    braced = [f"{{{name}}}" for name in names]
    return f"{', '.join(braced[:-1])} and {braced[-1]}"
