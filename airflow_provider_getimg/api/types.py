# SPDX-License-Identifier: Apache-2.0
"""
What is sent to the API and what it answers.

Answers keep fields that are unknown here, so that the API can grow; a required field that is
missing is an error. Source of every shape and limit: the vendor's pages "Generate images",
"Media responses", "Models" and "Billing".
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from datetime import date as calendar_date
from decimal import Decimal
from typing import Annotated, Any, Self

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
    field_validator,
)

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.signed_urls import without_query

PROMPT_MAX_CHARACTERS = 4096
MAX_REFERENCE_IMAGES = 8
REFERENCE_IMAGE_MAX_BYTES = 10 * 1024 * 1024
REQUEST_MAX_BYTES = 25 * 1024 * 1024
OUTPUT_FORMATS = ("png", "jpeg", "webp")
REFERENCE_IMAGE = "reference_image"

_DATA_URL_HEAD = re.compile(r"data:image/(?:png|jpeg|webp);base64,")


class ReferenceImage(BaseModel):
    """One reference image: an HTTPS URL, or a data URL of a PNG, JPEG or WebP of at most 10 MiB."""

    model_config = ConfigDict(extra="forbid")

    url: str
    role: str = REFERENCE_IMAGE

    @field_validator("url")
    @classmethod
    def _is_https_or_a_data_url(cls, url: str) -> str:
        if url.startswith("https://"):
            return url
        head = _DATA_URL_HEAD.match(url)
        if head is None:
            raise ValueError(
                f"is {_short(url)}: an https:// URL or a data URL (data:image/png;base64,... or the "
                "same with jpeg or webp) is allowed"
            )
        try:
            size = len(base64.b64decode(url[head.end() :], validate=True))
        except binascii.Error:
            raise ValueError("is a data URL whose base64 can't be decoded") from None
        if size > REFERENCE_IMAGE_MAX_BYTES:
            raise ValueError(
                f"is an image of {size} bytes: at most {REFERENCE_IMAGE_MAX_BYTES} (10 MiB) are allowed"
            )
        return url

    @field_validator("role")
    @classmethod
    def _role_is_named(cls, role: str) -> str:
        return _not_empty(role)


class ImageRequest(BaseModel):
    """
    The body of ``POST /v2/images/generations``. What is not given is not sent.

    :param model: Model identifier, such as ``seedream-5-lite``.
    :param prompt: What to draw, 1 to 4096 characters.
    :param aspect_ratio: Such as ``16:9``; the model's default otherwise.
    :param resolution: Such as ``2K``; the model's default otherwise.
    :param output_format: ``png``, ``jpeg`` or ``webp``; the API's default is ``jpeg``.
    :param images: At most 8 reference images.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    prompt: str
    aspect_ratio: str | None = None
    resolution: str | None = None
    output_format: str | None = None
    images: list[ReferenceImage] | None = None

    @classmethod
    def checked(cls, **fields: Any) -> ImageRequest:
        """
        Build a request, or say in one sentence what is wrong with it. None means: not given.

        :raises InvalidInputError: A value that the API is known to refuse.
        """
        try:
            return cls(**{name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            raise InvalidInputError(first_fault(error)) from None

    @field_validator("model", "aspect_ratio", "resolution")
    @classmethod
    def _is_not_empty(cls, text: str) -> str:
        return _not_empty(text)

    @field_validator("prompt")
    @classmethod
    def _prompt_is_in_range(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError(f"is empty: 1 to {PROMPT_MAX_CHARACTERS} characters are allowed")
        # Nobody means this word, and it would be billed.
        if prompt.strip() == "None":
            raise ValueError("is the text 'None': a template rendered nothing")
        if len(prompt) > PROMPT_MAX_CHARACTERS:
            raise ValueError(f"has {len(prompt)} characters: at most {PROMPT_MAX_CHARACTERS} are allowed")
        return prompt

    @field_validator("output_format")
    @classmethod
    def _format_is_known(cls, output_format: str) -> str:
        if output_format not in OUTPUT_FORMATS:
            raise ValueError(f"is {_short(output_format)}: png, jpeg and webp are allowed")
        return output_format

    @field_validator("images")
    @classmethod
    def _images_are_few(cls, images: list[ReferenceImage]) -> list[ReferenceImage]:
        if len(images) > MAX_REFERENCE_IMAGES:
            raise ValueError(f"holds {len(images)} images: at most {MAX_REFERENCE_IMAGES} are allowed")
        return images

    def to_json(self) -> dict[str, Any]:
        """Return the body as it is sent: given fields alone, no ``images`` where the list is empty."""
        body = self.model_dump(mode="json", exclude_none=True)
        if not body.get("images"):
            body.pop("images", None)
        return body


def _short(value: object) -> str:
    """Quote a value in a message: what is long, or signed, is cut."""
    text = without_query(repr(value))
    return text if len(text) <= 60 else f"{text[:60]}..."


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def first_fault(error: ValidationError) -> str:
    """Turn the first fault that pydantic found into a sentence: ``prompt is empty: ...``."""
    fault = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    if fault["type"] == "value_error":
        return f"{where} {fault['ctx']['error']}."
    if fault["type"] == "missing":
        return f"{where} is missing."
    if fault["type"] == "extra_forbidden":
        return f"{where} is not a known field."
    expected = fault["msg"].removeprefix("Input should be ")
    return f"{where} is {_short(fault['input'])}: {expected} is allowed."


class _Answer(BaseModel):
    """An answer of the API: unknown fields are kept, and the JSON is kept as it came."""

    model_config = ConfigDict(extra="allow")

    _received: Any = PrivateAttr(default=None)

    @classmethod
    def from_json(cls, received: Any) -> Self:
        """
        Read an answer, and keep the JSON as it came.

        :raises pydantic.ValidationError: A required field is missing or of another type.
        """
        answer = cls.model_validate(received)
        answer._received = received
        return answer

    def to_json(self) -> Any:
        """Return the answer as plain JSON, exactly as the API sent it."""
        if self._received is not None:
            return self._received
        return self.model_dump(mode="json", exclude_unset=True)


def _or_none(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Read a field that nothing depends on: what can't be read is not known, and no reason to lose a paid file."""
    try:
        return read(value)
    except ValidationError:
        return None


def _in_utc(moment: datetime) -> datetime:
    """Take a time without a zone for UTC, as the documented ones are."""
    return moment if moment.utcoffset() is not None else moment.replace(tzinfo=UTC)


class MediaFile(_Answer):
    """One generated file. ``url`` is signed: it works without the API key until ``deletes_at``."""

    url: str = Field(pattern=r"^https?://", repr=False)
    mime_type: str
    deletes_at: Annotated[datetime, AfterValidator(_in_utc)]
    width: Annotated[int | None, WrapValidator(_or_none)] = None
    height: Annotated[int | None, WrapValidator(_or_none)] = None


class Usage(_Answer):
    """What a generation cost, in USD."""

    total_cost: Decimal
    unit_price: Decimal | None = None
    quantity: Decimal | None = None
    billable_unit: str | None = None


@dataclass(frozen=True)
class RateLimit:
    """
    What an answer tells of the limit on requests per minute.

    :param remaining: Requests that are left.
    :param resets_in: Seconds until there are more.
    """

    remaining: int
    resets_in: float


class Generation(_Answer):
    """
    The answer to a generation: one or more files, and what they cost.

    ``status``, ``model`` and ``usage`` are documented as always there. An answer without them still holds
    paid files, so their absence is no error: the cost is then unknown.
    """

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)

    id: str = Field(min_length=1)
    status: str | None = None
    model: Annotated[str | None, WrapValidator(_or_none)] = None
    data: list[MediaFile] = Field(min_length=1)
    usage: Annotated[Usage | None, WrapValidator(_or_none)] = None

    _rate_limit: RateLimit | None = PrivateAttr(default=None)

    @property
    def rate_limit(self) -> RateLimit | None:
        """What the answer's headers told of the limit on requests per minute; None if nothing."""
        return self._rate_limit


class Rate(_Answer):
    """A price in USD. ``resolution`` None means: for every resolution."""

    billable_unit: str
    unit_price: Decimal
    resolution: str | None = None
    sound: str | None = None


class Pricing(_Answer):
    """The rates of a model. No rates means that the price is unknown, not that it is free."""

    currency: str
    rates: list[Rate]


class Model(_Answer):
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


class Balance(_Answer):
    """The account's balance: a decimal, in ``currency``."""

    balance: Decimal
    currency: str


class DailyCost(_Answer):
    """The cost of one UTC day."""

    date: calendar_date
    cost: Decimal


class Costs(_Answer):
    """The account's costs from ``start`` to ``end``, a bucket a UTC day."""

    currency: str
    start: AwareDatetime
    end: AwareDatetime
    total_cost: Decimal
    data: list[DailyCost]
