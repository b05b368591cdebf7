# SPDX-License-Identifier: Apache-2.0
"""Decides which files of which generations go to which keys, all before the first download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.media import extension, known_type
from airflow_provider_getimg.api.quote import quote
from airflow_provider_getimg.api.types import Generation
from airflow_provider_getimg.records import request_record
from airflow_provider_getimg.s3.keys import PLACEHOLDERS, UNKNOWN, KeyTemplate, clean_value, numbered
from airflow_provider_getimg.s3.labels import labels_of
from airflow_provider_getimg.s3.uris import bucket_and_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from airflow_provider_getimg.api.types import MediaFile

# The same length and form as the real values, so that a key can be checked before the file is downloaded.
_ANY_CONTENT = {"sha256": "0" * 64, "extension": "webp"}
# Whatever the API promises, all files may turn out to have the same type.
_ONE_KIND = {"extension": "x"}


@dataclass(frozen=True, slots=True)
class KnownMedia:
    """Replaces the ``MediaFile`` of a saved file: everything but its URL, in a tenth of the memory."""

    mime_type: str | None
    deletes_at: datetime | None
    width: int | None = None
    height: int | None = None
    url: str = ""


def file_name(generation_id: str, index: int) -> str:
    """Return a file's name in messages."""
    return f"file {index} of generation {generation_id}"


# Compared by identity: before they are downloaded, two files may have equal fields.
@dataclass(frozen=True, eq=False, slots=True)
class TransferItem:
    """
    One file of a generation and the object that it becomes.

    :param index: Its position in the response's ``data``, from 0.
    :param key: The object's key; if it depends on the file's content, empty until :meth:`with_key`.
    :param cost: The cost of its generation in USD; None if the API didn't say.
    :param prompt_sha256: Digest of the prompt, if known.
    :param request_sha256: Fingerprint of the request, if known.
    :param request: The request that came with its generation, as recorded.
    """

    generation_id: str
    index: int
    model: str | None
    media: MediaFile | KnownMedia
    bucket: str
    key: str
    cost: Decimal | None = None
    prompt_sha256: str | None = None
    request_sha256: str | None = None
    request: Mapping[str, Any] | None = None
    _pending_key: tuple[KeyTemplate, Mapping[str, Any], bool] | None = None

    @property
    def uri(self) -> str:
        """The object's ``s3://bucket/key``; only the bucket while the key is unknown."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """The file's name in messages."""
        return file_name(self.generation_id, self.index)

    def with_key(self, sha256: str, mime_type: str) -> TransferItem:
        """Return the item with its key, now that the content is known."""
        if self._pending_key is None:
            return self
        template, values, shared = self._pending_key
        key = template.render({"extension": extension(mime_type), **values, "sha256": sha256})
        return replace(self, key=numbered(key, self.index) if shared else key, _pending_key=None)

    def at(self, uri: str) -> TransferItem:
        """Return the item as saved at ``s3://bucket/key``."""
        bucket, key = bucket_and_key(uri)
        return replace(self, bucket=bucket, key=key, _pending_key=None)


def plan(generations: Sequence[Generation], s3_key: object, s3_bucket: object) -> list[TransferItem]:
    """
    Return an item for each file of each generation.

    :param s3_key: A key with placeholders, or a full ``s3://bucket/key``.
    :param s3_bucket: The bucket if ``s3_key`` is not a full URI; None otherwise.
    :raises InvalidInputError: An unknown placeholder, a label that a generation lacks, an invalid key, or the same key for
        two generations.
    """
    template = KeyTemplate.parse(s3_key, s3_bucket)
    labelled = [(generation, labels_of(generation)) for generation in generations]
    template.check_names(
        dict.fromkeys([*PLACEHOLDERS, *sorted({name for _, labels in labelled for name in labels})])
    )
    for generation, labels in labelled:
        missing = template.names.difference(PLACEHOLDERS, labels)
        if missing:
            raise InvalidInputError(
                f"Generation {generation.id} has no label {quote(min(missing))}, which s3_key uses."
            )
    items = [
        replace(item, request=request)
        for generation, labels in labelled
        for request in [_request(generation, labels)]
        for item in items_of(generation, template, labels)
    ]
    _check_distinct(items)
    if not all(item.key for item in items):
        # Files whose extension is known only from their bytes may all have the same type.
        _check_distinct(
            item
            for generation, labels in labelled
            for item in items_of(generation, template, {**labels, **_ONE_KIND})
        )
    return items


def _request(generation: Generation, labels: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the request that came with a generation, as recorded; None if there is none."""
    request = (generation.model_extra or {}).get("request")
    return (request_record(request, labels) or None) if isinstance(request, Mapping) else None


def _check_distinct(items: Iterable[TransferItem]) -> None:
    seen: dict[str, TransferItem] = {}
    for item in items:
        # Files named by their content share a key if and only if they are identical.
        place = item.key or item.name
        if place in seen:
            raise InvalidInputError(
                f"s3_key gives {seen[place].name} and {item.name} the same key {place!r}: distinguish them with "
                "{generation_id} and {index}."
            )
        seen[place] = item


def items_of(
    generation: Generation, template: KeyTemplate, values: Mapping[str, Any] | None = None
) -> list[TransferItem]:
    """
    Return an item for each file of a generation. Files that would share a key get their index appended.

    The response is paid for: its values are made to fit into a key, and missing ones become ``unknown``.

    :param values: The values of further placeholders, and values that override the response's.
    :raises InvalidInputError: The template gives a key that S3 does not accept.
    """
    items: dict[str, TransferItem] = {}
    for media in generation.data:
        known: dict[str, Any] = {
            "generation_id": clean_value(generation.id),
            "index": media.index,
            "model": clean_value(generation.model) if generation.model else "unknown-model",
            "width": media.width or UNKNOWN,
            "height": media.height or UNKNOWN,
        }
        if (promised := known_type(media.mime_type)) is not None:
            known["extension"] = extension(promised)
        known |= values or {}
        key = template.render(_ANY_CONTENT | known)
        place = template.render(_ANY_CONTENT | known | _ONE_KIND)
        shared = place in items
        missing = template.names - known.keys()
        items[f"{place} {media.index}" if shared else place] = TransferItem(
            generation.id,
            media.index,
            generation.model,
            media,
            template.bucket,
            "" if missing else numbered(key, media.index) if shared else key,
            generation.cost,
            _pending_key=(template, known, shared and "sha256" not in missing) if missing else None,
        )
    return list(items.values())


def total_cost(billed: Iterable[Generation | TransferItem]) -> Decimal | None:
    """Return the total cost of generations in USD; None if the API didn't give the cost of all of them."""
    costs = [one.cost for one in billed]
    known = [cost for cost in costs if cost is not None]
    return sum(known, Decimal(0)) if len(known) == len(costs) else None


def parse_generations(generation: object) -> tuple[list[Generation], int]:
    """
    Return the distinct generations in a task's ``generation``, and the number of None values, which skipped tasks leave.

    :raises InvalidInputError: It is not a generation or a list of them. The error reports the bill of the valid ones.
    """
    generations: list[Generation] = []
    gaps = 0
    fault: InvalidInputError | None = None
    for name, value in _entries(generation):
        if value is None:
            gaps += 1
            continue
        try:
            generations.append(_parse(value, name))
        except InvalidInputError as error:
            fault = fault or error
    # An output that is passed twice is saved, and was billed, once.
    generations = list(
        {
            (generation.id, *(file.url for file in generation.data)): generation for generation in generations
        }.values()
    )
    if fault is not None:
        raise fault.with_bill([generation.id for generation in generations], total_cost(generations))
    return generations, gaps


def _entries(generation: object) -> Iterator[tuple[str, object]]:
    if generation is None or isinstance(generation, Mapping):
        yield "generation", generation
        return
    if isinstance(generation, str) or not isinstance(generation, Sequence):
        raise InvalidInputError(
            "generation must be the response of a generation (a dict), or a list of them, got "
            f"{type(generation).__name__}. Pass the upstream task's .output rather than a Jinja string."
        )
    for position, value in enumerate(generation):
        name = f"generation[{position}]"
        # In a list of outputs, this one is a mapped task's.
        if isinstance(value, Sequence) and not isinstance(value, str):
            for number, one in enumerate(value):
                yield f"{name}[{number}]", one
        else:
            yield name, value


def _parse(value: object, name: str) -> Generation:
    if not isinstance(value, Mapping):
        raise InvalidInputError(
            f"{name} must be the response of a generation (a dict), got {type(value).__name__}."
        )
    try:
        return Generation.from_json(dict(value))
    except ValueError as error:
        raise InvalidInputError(f"{name} must be the response of a generation: {error}") from None
