# SPDX-License-Identifier: Apache-2.0
"""
The bodies of billed requests. Values that the API is known to refuse are rejected before anything is sent.

All shapes and limits come from the vendor's pages "Generate images" and "Generate videos".
"""

from __future__ import annotations

import base64
import re
import unicodedata
from typing import Any, Self
from urllib.parse import quote as percent_encoded

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.faults import first_error
from airflow_provider_getimg.api.quote import quote

PROMPT_MAX_CHARACTERS = 4096
#: The documented limit, for models that don't state their own.
MAX_REFERENCE_IMAGES = 8
#: More than any model accepts: beyond this, there is no need to check the catalogue.
REFERENCE_IMAGES_LIMIT = 64
REFERENCE_IMAGE_MAX_BYTES = 10 * 1024 * 1024
REQUEST_MAX_BYTES = 25 * 1024 * 1024
OUTPUT_FORMATS = ("png", "jpeg", "webp")
REFERENCE_IMAGE = "reference_image"

# Letters and symbols that render as nothing: fillers, joiners, blank patterns and variation selectors.
_LOOK_EMPTY = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)
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
            return _encodable(url)
        head = _DATA_URL_HEAD.match(url)
        if head is None:
            raise ValueError(
                "must be an https:// URL, or a data URL (data:image/png;base64,... or the same with jpeg or webp), "
                f"got {quote(url)}"
            )
        try:
            size = len(base64.b64decode(url[head.end() :], validate=True))
        except ValueError:
            raise ValueError("must be a data URL with valid base64, got one that can't be decoded") from None
        if size > REFERENCE_IMAGE_MAX_BYTES:
            raise ValueError(
                f"must be an image of at most {REFERENCE_IMAGE_MAX_BYTES} bytes (10 MiB), got {size}"
            )
        return url

    @field_validator("role")
    @classmethod
    def _role_is_named(cls, role: str) -> str:
        return _not_empty(role)


class _Request(BaseModel):
    """The fields common to all generation requests. Omitted fields are not sent."""

    model_config = ConfigDict(extra="forbid")

    model: str
    prompt: str
    aspect_ratio: str | None = None
    resolution: str | None = None
    images: list[ReferenceImage] | None = None

    @classmethod
    def checked(cls, **fields: Any) -> Self:
        """
        Build a request, or say in one sentence what is wrong with it. None means omitted.

        :raises InvalidInputError: The API is known to refuse a value.
        """
        try:
            return cls(**{name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            raise InvalidInputError(first_error(error)) from None

    @field_validator("model", "aspect_ratio", "resolution")
    @classmethod
    def _is_not_empty(cls, text: str) -> str:
        return _not_empty(text)

    @field_validator("prompt")
    @classmethod
    def _prompt_is_in_range(cls, prompt: str) -> str:
        _not_empty(prompt)
        # No one wants this as a prompt, and it would be billed.
        if prompt.strip() == "None":
            raise ValueError("must be a description, got 'None': a template rendered nothing")
        if len(prompt) > PROMPT_MAX_CHARACTERS:
            raise ValueError(f"must have at most {PROMPT_MAX_CHARACTERS} characters, got {len(prompt)}")
        return prompt

    @field_validator("images")
    @classmethod
    def _images_within_limit(cls, images: list[ReferenceImage]) -> list[ReferenceImage]:
        if len(images) > REFERENCE_IMAGES_LIMIT:
            raise ValueError(f"must contain at most {REFERENCE_IMAGES_LIMIT} images, got {len(images)}")
        return images

    def to_json(self) -> dict[str, Any]:
        """Return the body to send: only the given fields, and no ``images`` if the list is empty."""
        body = self.model_dump(mode="json", exclude_none=True)
        if not body.get("images"):
            body.pop("images", None)
        return body


class ImageRequest(_Request):
    """
    The body of ``POST /v2/images/generations``. Omitted fields are not sent.

    :param model: Model identifier, such as ``seedream-5-lite``.
    :param prompt: What to draw, 1 to 4096 characters.
    :param aspect_ratio: Such as ``16:9``; the model's default otherwise.
    :param resolution: Such as ``2K``; the model's default otherwise.
    :param output_format: ``png``, ``jpeg`` or ``webp``; the API's default is ``jpeg``.
    :param images: Reference images: at most 8, or as many as the model accepts (``check_references``).
    """

    output_format: str | None = None

    @field_validator("output_format")
    @classmethod
    def _format_is_known(cls, output_format: str) -> str:
        if output_format not in OUTPUT_FORMATS:
            raise ValueError(f"must be 'png', 'jpeg' or 'webp', got {quote(output_format)}")
        return output_format


class VideoRequest(_Request):
    """
    The body of ``POST /v2/videos/generations``. Omitted fields are not sent.

    :param model: Model identifier, such as ``seedance-v1-pro``.
    :param prompt: What to show, 1 to 4096 characters.
    :param aspect_ratio: Such as ``16:9``; the model's default otherwise.
    :param resolution: Such as ``1080p``; the model's default otherwise.
    :param duration: In whole seconds, 1 or more; the model's default otherwise. A string is parsed.
    :param sound: Whether the video has sound; the model's default otherwise.
    :param images: References: at most 8, or as many as the model accepts. Their role is ``reference_image``,
        ``first_frame`` or ``last_frame``.
    """

    duration: int | None = None
    sound: bool | None = None

    @field_validator("duration", mode="before")
    @classmethod
    def _duration_is_whole(cls, duration: Any) -> int:
        try:
            seconds = float("nan" if isinstance(duration, bool) else duration)
        except (TypeError, ValueError, OverflowError):
            seconds = float("nan")
        if not 1 <= seconds < 1_000_000 or seconds != int(seconds):
            raise ValueError(f"must be a whole number of seconds, 1 or more, got {quote(duration)}")
        return int(seconds)

    @field_validator("sound", mode="before")
    @classmethod
    def _sound_is_a_flag(cls, sound: Any) -> bool:
        text = str(sound).strip().lower()
        if text not in ("true", "false"):
            raise ValueError(f"must be True or False, got {quote(sound)}")
        return text == "true"


def video_path(video_id: str) -> str:
    """Return the path to read a video's state from."""
    return f"/v2/videos/generations/{percent_encoded(video_id, safe='')}"


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    if all(_is_blank(character) for character in text):
        raise ValueError(f"must not be empty or invisible, got {quote(text)}")
    return _encodable(text)


def _encodable(text: str) -> str:
    if "\x00" in text:
        # PostgreSQL rejects them, so the response could not be stored with its request.
        raise ValueError(f"must not contain NUL characters, got {quote(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        # A lone surrogate, as truncated text may contain.
        raise ValueError(f"must be text that can be encoded, got {quote(text)}") from None
    return text


def _is_blank(character: str) -> bool:
    """Return whether a character is invisible: spaces, controls, zero-width ones, and those that look like spaces."""
    category = unicodedata.category(character)
    return category[0] == "Z" or category in ("Cc", "Cf") or character in _LOOK_EMPTY
