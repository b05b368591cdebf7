# SPDX-License-Identifier: Apache-2.0
"""The rows of a batch: read, merged with the defaults, and all checked before anything is sent."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.media import extension
from airflow_provider_getimg.api.quote import quote
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.batch.requests_file import listed
from airflow_provider_getimg.durable.request_spec import FIELDS, RequestSpec, check_fields
from airflow_provider_getimg.s3.keys import PLACEHOLDERS as FILE_PLACEHOLDERS
from airflow_provider_getimg.s3.keys import UNKNOWN
from airflow_provider_getimg.s3.labels import LABELS, ROW_PLACEHOLDERS, checked_labels
from airflow_provider_getimg.s3.plan import KnownMedia, TransferItem, items_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.api.types import Generation
    from airflow_provider_getimg.s3.keys import KeyTemplate

#: The API's default.
_DEFAULT_FORMAT = "jpeg"
#: The format that a key's suffix promises.
_FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}

#: Placeholders whose values are only in the response.
_KNOWN_FROM_RESPONSE = frozenset({"generation_id", "sha256", "width", "height"})
#: Stand-ins for these while keys are checked.
_ANY_ID = "0" * 28
_LONGEST_VALUES = {"generation_id": _ANY_ID, "index": 0, "width": 99999, "height": 99999, "sha256": "0" * 64}
_NO_SIZE = {"width": UNKNOWN, "height": UNKNOWN}
# How many faults are listed; the rest are only counted.
_MAX_FAULTS_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Row:
    """
    One image of a batch.

    :param index: Its position in the list, from 0.
    :param request: The request.
    :param labels: The user's labels for it, as plain JSON.
    :param template: The template of its files' keys.
    :param id: The same in each try: the request's fingerprint, and a number that tells identical requests apart.
    """

    index: int
    request: RequestSpec[ImageRequest]
    labels: Mapping[str, Any]
    template: KeyTemplate
    id: str = ""

    @property
    def name(self) -> str:
        """The row's name in messages."""
        return f"Row {self.index}"

    @property
    def bucket(self) -> str:
        """The bucket of its files."""
        return self.template.bucket

    @property
    def output_format(self) -> str:
        """The requested format."""
        return self.request.checked.output_format or _DEFAULT_FORMAT

    @property
    def _extension(self) -> str:
        return extension(f"image/{self.output_format}")

    @property
    def prompt_sha256(self) -> str:
        """A digest of the prompt, in hex."""
        return hashlib.sha256(self.request.checked.prompt.encode()).hexdigest()

    @property
    def _values(self) -> dict[str, Any]:
        """
        The placeholder values that are known before the request is sent.

        They include the extension: a row's key must not depend on the format that a response reports.
        """
        request = self.request.checked
        fields = {name: getattr(request, name) for name in FIELDS if name != "images"}
        return {
            **{name: "default" if value is None else value for name, value in fields.items()},
            **self.labels,
            "row": self.index,
            "output_format": self.output_format,
            "extension": self._extension,
        }

    def check_key(self) -> None:
        """
        Check that its file will have a valid key, whatever the response says.

        :raises InvalidInputError: It won't, or the key promises a format other than the requested one.
        """
        self.template.render({**self._values, **_LONGEST_VALUES, **_NO_SIZE})
        key = self._planned_key()
        _, dot, suffix = key.lower().rpartition(".")
        if dot and _FORMATS.get(suffix, self.output_format) != self.output_format:
            default = "" if self.request.checked.output_format else ", the default"
            raise InvalidInputError(
                f"s3_key must end in {{extension}}, or in .{self._extension} where output_format is "
                f"{self.output_format!r}{default}, got {quote(key)}."
            )

    def _planned_key(self) -> str:
        return self.template.render({**self._values, **_LONGEST_VALUES})

    def items(self, generation: Generation) -> list[TransferItem]:
        """Return where the files of its generation go. It is paid for, so no key can be refused now."""
        try:
            items = items_of(generation, self.template, self._values)
        except InvalidInputError:
            # The response's values make no valid key, or one that is too long. The key was checked with values like these.
            digest = hashlib.sha256(generation.id.encode(errors="replace")).hexdigest()
            safe = {"generation_id": digest[: len(_ANY_ID)], "index": 0, **_NO_SIZE}
            items = items_of(generation, self.template, {**self._values, **safe})
        return [self._named(item) for item in items]

    def _named(self, item: TransferItem) -> TransferItem:
        return replace(item, prompt_sha256=self.prompt_sha256, request_sha256=self.request.fingerprint)

    @cached_property
    def expected_key(self) -> str | None:
        """The key of its first file; None if it depends on the response."""
        return None if self.template.names & _KNOWN_FROM_RESPONSE else self._planned_key()

    def expected_item(self) -> TransferItem:
        """Return the item of its file, before there is a response."""
        return self._named(
            TransferItem(
                _ANY_ID,
                0,
                self.request.checked.model,
                KnownMedia(f"image/{self.output_format}", None),
                self.bucket,
                self._planned_key(),
            )
        )

    def existing_item(
        self, generation_id: str | None, model: str | None, mime_type: str | None
    ) -> TransferItem:
        """Return the item of the object that exists at its key, with the object's own values."""
        item = self.expected_item()
        media = KnownMedia(mime_type or item.media.mime_type, None)
        return replace(item, generation_id=generation_id or "unknown", model=model, media=media)

    def redacted(self) -> dict[str, Any]:
        """Return the request and its labels, redacted for display."""
        redacted = self.request.redacted()
        return {**redacted, LABELS: dict(self.labels)} if self.labels else redacted


@dataclass
class _Faults:
    """The faults in rows: the first ones, so that they can be fixed together, and the total number."""

    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, fault: str) -> None:
        """Add a fault."""
        self.count += 1
        if len(self.shown) < _MAX_FAULTS_SHOWN:
            self.shown.append(fault)

    def check(self) -> None:
        """
        Check that there are no faults.

        :raises InvalidInputError: There are.
        """
        if self.count:
            more = f" And {self.count - len(self.shown)} more." if self.count > len(self.shown) else ""
            raise InvalidInputError(" ".join(self.shown) + more)


def read_rows(
    requests: object,
    defaults: object,
    template: KeyTemplate,
    s3_client: Callable[[], S3Client],
) -> list[Row]:
    """
    Return the rows of a batch.

    :param requests: A list of dicts, or the ``s3://bucket/key`` of a JSON Lines file.
    :param defaults: Fields that all requests share; None for none.
    :param template: The template of their files' keys.
    :param s3_client: Returns a client; called only if a file is to be read.
    :raises InvalidInputError: A row or a key can't be used. The message names the first ones.
    :raises UnavailableError: S3 could not be reached.
    """
    shared, shared_labels = _checked_defaults(defaults)
    faults, unlabelled = _Faults(), _Faults()
    rows: list[Row] = []
    asked: Counter[str] = Counter()
    labels_seen: set[str] = set()
    for index, (where, fields) in enumerate(listed(requests, s3_client, faults.add)):
        try:
            request, labels = _request(shared, shared_labels, fields)
            labels_seen.update(labels)
            missing = template.names.difference(FILE_PLACEHOLDERS, ROW_PLACEHOLDERS, labels)
            if missing:
                unlabelled.add(f"{where} has no label {quote(min(missing))}, which s3_key uses.")
                continue
            row = Row(index, request, labels, template)
            row.check_key()
            digest = request.fingerprint[:32]
        except InvalidInputError as error:
            faults.add(f"{where}: {error.message}")
            continue
        rows.append(replace(row, id=f"{digest}-{asked[digest]}"))
        asked[digest] += 1
    faults.check()
    if unlabelled.count:
        template.check_names(dict.fromkeys([*FILE_PLACEHOLDERS, *ROW_PLACEHOLDERS, *sorted(labels_seen)]))
        unlabelled.check()
    _check_keys(rows)
    return rows


def _check_keys(rows: Sequence[Row]) -> None:
    # Not width and height: they tell rows apart only by chance.
    if rows and rows[0].template.names & {"generation_id", "sha256"}:
        return
    places: dict[str, Row] = {}
    for row in rows:
        key = row.expected_key or row.expected_item().key
        if key in places:
            raise InvalidInputError(
                f"s3_key gives rows {places[key].index} and {row.index} the same key {quote(key)}: distinguish them "
                "with {row}, a field in which they differ, or {generation_id}."
            )
        places[key] = row


def _request(
    shared: Mapping[str, Any], shared_labels: Mapping[str, Any], fields: Mapping[str, Any]
) -> tuple[RequestSpec[ImageRequest], Mapping[str, Any]]:
    labels = checked_labels(fields.get(LABELS))
    return RequestSpec(ImageRequest, {**shared, **_known(fields)}), {**shared_labels, **labels}


def _checked_defaults(defaults: object) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the fields and the labels that all requests share."""
    if defaults is None:
        return {}, {}
    if not isinstance(defaults, Mapping):
        raise InvalidInputError(
            f"defaults must be a dict of the fields that the requests share, got {quote(defaults)}."
        )
    try:
        return _known(defaults), checked_labels(defaults.get(LABELS))
    except InvalidInputError as error:
        raise InvalidInputError(f"defaults: {error.message}") from None


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request without its labels."""
    check_fields(fields)
    return {name: value for name, value in fields.items() if name != LABELS}
