# SPDX-License-Identifier: Apache-2.0
"""
The API's responses.

They keep unknown fields, so that the API can grow; a missing required field is an error. All shapes and
limits come from the vendor's pages "Generate images", "Media responses", "Models" and "Billing".
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from datetime import date as calendar_date
from decimal import Decimal
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from airflow_provider_getimg.api.quote import quote

#: The API's names (an id, a model) are truncated to this: an object's metadata is limited to 2 KB in total.
NAME_MAX_CHARACTERS = 128
# A video's id has about thirty characters.
_ID_MAX_CHARACTERS = 512


class _ApiObject(BaseModel):
    """A response from the API. Keeps unknown fields and the original JSON."""

    model_config = ConfigDict(extra="allow")

    _received: Any = PrivateAttr(default=None)

    @classmethod
    def from_json(cls, received: Any) -> Self:
        """
        Read a response and keep the original JSON.

        :raises ValueError: A required field is missing or has the wrong type.
        """
        response = cls.model_validate(received)
        response._received = received
        return response

    def to_json(self) -> Any:
        """Return the response as plain JSON, exactly as the API sent it."""
        if self._received is not None:
            return self._received
        return self.model_dump(mode="json", exclude_unset=True)


def _or_none(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Read a field that nothing depends on: an unreadable value becomes None, and is no reason to lose a paid file."""
    try:
        return None if isinstance(value, bool) else read(value)
    except (ValidationError, ArithmeticError):
        return None


def _moment(moment: datetime) -> datetime | None:
    """Return a time in UTC, the default zone because documented times are UTC; None if it was never set."""
    if moment.utcoffset() is None:
        moment = moment.replace(tzinfo=UTC)
    # Servers write a time that they don't have as year 1 or 1970.
    return moment.astimezone(UTC) if moment.year > 1970 else None


def _one_line(text: str) -> str | None:
    """Return an API name without control characters, truncated to a length that any store accepts."""
    plain = "".join(character for character in text.strip() if unicodedata.category(character)[0] != "C")
    if len(plain) > NAME_MAX_CHARACTERS:
        digest = hashlib.sha256(plain.encode(errors="replace")).hexdigest()[:16]
        plain = f"{plain[: NAME_MAX_CHARACTERS - 17]}-{digest}"
    return plain or None


_Amount = Annotated[Decimal | None, Field(ge=0, le=1_000_000, allow_inf_nan=False), WrapValidator(_or_none)]
_Pixels = Annotated[int | None, Field(gt=0, lt=2**31), WrapValidator(_or_none)]
_Name = Annotated[str | None, AfterValidator(lambda text: text and _one_line(text)), WrapValidator(_or_none)]


class MediaFile(_ApiObject):
    """
    One generated file. ``url`` is signed: it works without the API key until ``deletes_at``.

    Every other field is None if the API sent no readable value.
    """

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)

    url: str = Field(repr=False)
    mime_type: _Name = None
    deletes_at: Annotated[
        datetime | None, AfterValidator(lambda at: at and _moment(at)), WrapValidator(_or_none)
    ] = None
    width: _Pixels = None
    height: _Pixels = None

    _index: int = PrivateAttr(default=0)

    @property
    def index(self) -> int:
        """The file's position in the response's ``data``, from 0."""
        return self._index


class Usage(_ApiObject):
    """What a generation cost, in USD; None if the API didn't say."""

    total_cost: _Amount = None
    unit_price: _Amount = None
    quantity: _Amount = None
    billable_unit: _Name = None


@dataclass(frozen=True)
class RateLimit:
    """
    The limit on requests per minute that a response reports.

    :param remaining: Requests left.
    :param resets_in: Seconds until the limit resets.
    :param limit: Requests per window; None if the API doesn't say.
    """

    remaining: int
    resets_in: float
    limit: int | None = None


class _PaidMedia(_ApiObject):
    """A response that was or will be paid for; :attr:`oddities` lists what is odd about it."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)

    _oddities: tuple[str, ...] = PrivateAttr(default=())

    @property
    def oddities(self) -> tuple[str, ...]:
        """What is odd about the response, as clauses for a warning, such as ``data[1] has no URL``."""
        return self._oddities


class Generation(_PaidMedia):
    """
    The response to a generation: one or more files, and what they cost.

    It was paid for, so it is read as leniently as possible: an entry of ``data`` with a URL is a file, whatever else is
    odd about it, and a bad entry doesn't affect the others.
    """

    id: str
    status: _Name = None
    model: _Name = None
    data: list[MediaFile]
    usage: Annotated[Usage | None, WrapValidator(_or_none)] = None

    _rate_limit: RateLimit | None = PrivateAttr(default=None)

    @classmethod
    def from_json(cls, received: Any) -> Self:
        """
        Read a response and keep the original JSON.

        :raises ValueError: It holds no file with a URL.
        """
        if not isinstance(received, Mapping):
            raise ValueError("it is not a JSON object.")
        files, oddities = _files(received.get("data"))
        if not files:
            raise ValueError("it has no file with a URL.")
        named = cls.model_validate({**_named_fields(received), "id": _id(received, files), "data": []})
        named.data = files
        named._received = received
        if named.status != "completed":
            oddities.insert(0, f"its status is {named.status!r}, not 'completed'")
        if named.cost is None:
            oddities.append("its cost is not given")
        named._oddities = tuple(oddities)
        return named

    @property
    def rate_limit(self) -> RateLimit | None:
        """The limit on requests per minute that the response's headers report; None if absent."""
        return self._rate_limit

    @property
    def cost(self) -> Decimal | None:
        """The cost in USD; None if the API didn't say."""
        return self.usage.total_cost if self.usage else None

    @property
    def is_made(self) -> bool:
        """Whether the generation was made, whatever the HTTP status says."""
        return self.cost is not None


class Video(_PaidMedia):
    """
    The state of a video: failed, completed, or still being generated.

    An unknown state counts as still being generated: polling is free.
    """

    id: str
    status: _Name = None
    usage: Annotated[Usage | None, WrapValidator(_or_none)] = None

    _generation: Generation | None = PrivateAttr(default=None)

    @classmethod
    def from_json(cls, received: Any) -> Self:
        """
        Read a state and keep the original JSON.

        :raises ValueError: It has no id, or is completed without a file.
        """
        if not isinstance(received, Mapping):
            raise ValueError("it is not a JSON object.")
        video = cls.model_validate({str(name): value for name, value in received.items()})
        # The id goes into a URL path, so it can't be truncated like an image's.
        if not (video.id.strip() and video.id.isprintable() and len(video.id) <= _ID_MAX_CHARACTERS):
            raise ValueError("its id can't be used.")
        video._received = received
        if video.status == "completed" or _files(received.get("data"))[0]:
            video._generation = Generation.from_json(received)
        return video

    @property
    def generation(self) -> Generation | None:
        """The files and their cost, once completed."""
        return self._generation

    @property
    def is_failed(self) -> bool:
        """Whether the video will never be completed."""
        return self._generation is None and self.status == "failed"

    @property
    def is_made(self) -> bool:
        """Whether the video was accepted, whatever the HTTP status says."""
        return self.status in ("pending", "completed")

    @property
    def failure(self) -> str:
        """Why the video failed, according to the API: its code and message."""
        error = (self.model_extra or {}).get("error")
        said = error if isinstance(error, Mapping) else {"message": error}
        texts = [
            text for name in ("code", "message") if isinstance(text := said.get(name), str) and text.strip()
        ]
        return ": ".join(texts) or "no reason given"

    @property
    def cost(self) -> Decimal | None:
        """The cost in USD; None if the API didn't say."""
        return self.usage.total_cost if self.usage else None


def _named_fields(received: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a response, except those that are read separately."""
    return {str(name): value for name, value in received.items() if name not in ("id", "data")}


def _files(data: Any) -> tuple[list[MediaFile], list[str]]:
    """Return the files in ``data``, and what is odd about it."""
    if isinstance(data, Mapping):
        # A single file without a list, or files by name.
        data = [data] if "url" in data else list(data.values())
    files, oddities = [], []
    for index, entry in enumerate(data if isinstance(data, list) else []):
        fields = {"url": entry} if isinstance(entry, str) else entry
        url = _usable_url(fields.get("url")) if isinstance(fields, Mapping) else None
        if url is None:
            oddities.append(f"data[{index}] has no URL that can be used: {quote(entry)}")
            continue
        file = MediaFile.model_validate({**{str(name): value for name, value in fields.items()}, "url": url})
        file._index = index
        if file.deletes_at is None:
            oddities.append(
                f"data[{index}].deletes_at is {quote(fields.get('deletes_at'))}: its expiry is not known"
            )
        files.append(file)
    return files, oddities


def _usable_url(value: Any) -> str | None:
    """Return an absolute HTTP URL without surrounding white space; None if ``value`` is not one."""
    if not isinstance(value, str):
        return None
    url = value.strip()
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return url if usable and url.isprintable() else None


def _id(received: Mapping[str, Any], files: list[MediaFile]) -> str:
    """Return the generation's id; if it has none, a stable one derived from its URLs."""
    value = received.get("id")
    if (
        isinstance(value, str | int | float)
        and not isinstance(value, bool)
        and (name := _one_line(str(value)))
    ):
        return name
    urls = "\n".join(file.url for file in files)
    return f"no-id-{hashlib.sha256(urls.encode(errors='replace')).hexdigest()[:16]}"


class Rate(_ApiObject):
    """A price in USD. A ``resolution`` of None means every resolution."""

    billable_unit: str
    unit_price: Decimal
    resolution: str | None = None
    sound: str | None = None


class Pricing(_ApiObject):
    """The rates of a model. No rates means an unknown price, not a free model."""

    currency: str
    rates: list[Rate]


class Model(_ApiObject):
    """A model in the catalogue. The first entry of each list is the model's default."""

    id: str
    name: str
    type: str
    pricing: Pricing
    supported_aspect_ratios: list[str] = []
    supported_resolutions: list[str] = []
    supported_durations: list[float] = []
    supported_references: dict[str, int] = {}
    supports_sound: bool = False
    created_at: AwareDatetime | None = None


class Balance(_ApiObject):
    """The account's balance: a decimal, in ``currency``."""

    balance: Decimal
    currency: str


class DailyCost(_ApiObject):
    """The cost of one UTC day."""

    date: calendar_date
    cost: Decimal


class Costs(_ApiObject):
    """The account's costs from ``start`` to ``end``, in one bucket per UTC day."""

    currency: str
    start: AwareDatetime
    end: AwareDatetime
    total_cost: Decimal
    data: list[DailyCost]
