# SPDX-License-Identifier: Apache-2.0
"""
What the API returns.

Responses keep fields that are unknown here, so that the API can grow; a required field that is
missing is an error. Source of every shape and limit: the vendor's pages "Generate images",
"Media responses", "Models" and "Billing".
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

#: Past this, the API's names for things (an id, a model) are cut: an object's metadata has room for 2 KB in all.
NAME_MAX_CHARACTERS = 128
# A video's id has some thirty.
_ID_MAX_CHARACTERS = 512


class _ApiObject(BaseModel):
    """A response of the API: unknown fields are kept, and the JSON is kept as it came."""

    model_config = ConfigDict(extra="allow")

    _received: Any = PrivateAttr(default=None)

    @classmethod
    def from_json(cls, received: Any) -> Self:
        """
        Read a response, and keep the JSON as it came.

        :raises ValueError: A required field is missing or of another type.
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
    """Read a field that nothing depends on: what can't be read is not known, and no reason to lose a paid file."""
    try:
        return None if isinstance(value, bool) else read(value)
    except (ValidationError, ArithmeticError):
        return None


def _moment(moment: datetime) -> datetime | None:
    """Take a time without a zone for UTC, as the documented ones are; one that was never set for not known."""
    if moment.utcoffset() is None:
        moment = moment.replace(tzinfo=UTC)
    # Year 1, or 1970, is how servers write a time that they don't have.
    return moment.astimezone(UTC) if moment.year > 1970 else None


def _one_line(text: str) -> str | None:
    """Return a name of the API's without control characters, cut to a length that any store takes."""
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

    All but the URL is None where the API didn't say, or not in a way that can be read.
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
        """Its place in the response's ``data``, from 0."""
        return self._index


class Usage(_ApiObject):
    """What a generation cost, in USD; None where the API didn't say."""

    total_cost: _Amount = None
    unit_price: _Amount = None
    quantity: _Amount = None
    billable_unit: _Name = None


@dataclass(frozen=True)
class RateLimit:
    """
    What a response says about the limit on requests per minute.

    :param remaining: Requests that are left.
    :param resets_in: Seconds until there are more.
    :param limit: Requests of a whole window; None where the API doesn't say.
    """

    remaining: int
    resets_in: float
    limit: int | None = None


class _PaidMedia(_ApiObject):
    """A response that was paid for, or will be: :attr:`oddities` says what was odd about it."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)

    _oddities: tuple[str, ...] = PrivateAttr(default=())

    @property
    def oddities(self) -> tuple[str, ...]:
        """What is odd about the response, each as a clause for a warning: ``data[1] has no URL``."""
        return self._oddities


class Generation(_PaidMedia):
    """
    The response to a generation: one or more files, and what they cost.

    It was paid for, so it is read as leniently as possible: an entry of ``data`` with a URL is a file, whatever else is odd
    about it, and a bad entry affects no other.
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
        Read a response, and keep the JSON as it came.

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
        """What the response's headers said about the limit on requests per minute; None if nothing."""
        return self._rate_limit

    @property
    def cost(self) -> Decimal | None:
        """What it cost in USD; None where the API didn't say."""
        return self.usage.total_cost if self.usage else None

    @property
    def is_made(self) -> bool:
        """Whether it was made, whatever the HTTP status says."""
        return self.cost is not None


class Video(_PaidMedia):
    """
    The state of a video: failed, completed, or still being made.

    An unknown state counts as still being made: asking again is free.
    """

    id: str
    status: _Name = None
    usage: Annotated[Usage | None, WrapValidator(_or_none)] = None

    _generation: Generation | None = PrivateAttr(default=None)

    @classmethod
    def from_json(cls, received: Any) -> Self:
        """
        Read a state, and keep the JSON as it came.

        :raises ValueError: It has no id, or is completed without a file.
        """
        if not isinstance(received, Mapping):
            raise ValueError("it is not a JSON object.")
        video = cls.model_validate({str(name): value for name, value in received.items()})
        # It goes into a path as it is, so that it is not shortened as an image's is.
        if not (video.id.strip() and video.id.isprintable() and len(video.id) <= _ID_MAX_CHARACTERS):
            raise ValueError("its id can't be used.")
        video._received = received
        if video.status == "completed" or _files(received.get("data"))[0]:
            video._generation = Generation.from_json(received)
        return video

    @property
    def generation(self) -> Generation | None:
        """The files and what they cost, once completed."""
        return self._generation

    @property
    def is_failed(self) -> bool:
        """Whether it will never be completed."""
        return self._generation is None and self.status == "failed"

    @property
    def is_made(self) -> bool:
        """Whether it was accepted, whatever the HTTP status says."""
        return self.status in ("pending", "completed")

    @property
    def failure(self) -> str:
        """Why it failed, as the API says it: its code and its message."""
        error = (self.model_extra or {}).get("error")
        said = error if isinstance(error, Mapping) else {"message": error}
        texts = [
            text for name in ("code", "message") if isinstance(text := said.get(name), str) and text.strip()
        ]
        return ": ".join(texts) or "no reason given"

    @property
    def cost(self) -> Decimal | None:
        """What it cost in USD; None where the API didn't say."""
        return self.usage.total_cost if self.usage else None


def _named_fields(received: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a response but for those that are read apart."""
    return {str(name): value for name, value in received.items() if name not in ("id", "data")}


def _files(data: Any) -> tuple[list[MediaFile], list[str]]:
    """Return the entries of ``data`` that are files, and what is odd about it."""
    if isinstance(data, Mapping):
        # One file without a list around it, or files by name.
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
    """Return an absolute HTTP URL without white space around it; None if it is none."""
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
    """Return the generation's id; one made of its URLs where it has none, the same whenever the response is read."""
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
    """A price in USD. ``resolution`` None means: for every resolution."""

    billable_unit: str
    unit_price: Decimal
    resolution: str | None = None
    sound: str | None = None


class Pricing(_ApiObject):
    """The rates of a model. No rates means that the price is unknown, not that it is free."""

    currency: str
    rates: list[Rate]


class Model(_ApiObject):
    """A model of the catalogue. The first entry of each list is the model's default."""

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
    """The account's costs from ``start`` to ``end``, a bucket a UTC day."""

    currency: str
    start: AwareDatetime
    end: AwareDatetime
    total_cost: Decimal
    data: list[DailyCost]
