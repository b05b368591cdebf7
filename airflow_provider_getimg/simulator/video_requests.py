# SPDX-License-Identifier: Apache-2.0
"""A validated request for one video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.simulator.clips import Clip, dimensions
from airflow_provider_getimg.simulator.errors import invalid
from airflow_provider_getimg.simulator.fields import (
    read_choice,
    read_model,
    read_prompt,
    read_references,
    refuse_unknown,
    refuse_unsafe,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from airflow_provider_getimg.simulator.catalogue import Model

FIELDS = ("model", "prompt", "aspect_ratio", "resolution", "duration", "sound", "images")


@dataclass(frozen=True)
class VideoRequest:
    """A request for one video, with every default filled in."""

    model: Model
    prompt: str
    aspect_ratio: str
    resolution: str
    seconds: int
    sound: bool

    @property
    def price(self) -> Decimal:
        """The price of the video, in USD."""
        return self.second_price * self.seconds

    @property
    def second_price(self) -> Decimal:
        """The price of one second of it, in USD."""
        return self.model.second_price(self.resolution, sound=self.sound)

    def clip(self) -> Clip:
        """Return the clip to film for it."""
        width, height = dimensions(self.aspect_ratio, self.resolution)
        return Clip(self.prompt, width, height, self.seconds, self.sound)


def check(fields: dict[str, Any], blocked_words: Iterable[str]) -> VideoRequest:
    """Check the fields in the order of the endpoint's documentation, then against the content policy."""
    model = read_model(fields, "video")
    prompt = read_prompt(fields)
    refuse_unknown(fields, FIELDS)
    where = f" for model '{model.id}'"
    request = VideoRequest(
        model=model,
        prompt=prompt,
        aspect_ratio=read_choice(fields, "aspect_ratio", model.aspect_ratios, where),
        resolution=read_choice(fields, "resolution", model.resolutions, where),
        seconds=_seconds(fields, model),
        sound=_sound(fields, model),
    )
    refuse_unsafe(prompt, read_references(fields.get("images", []), model), blocked_words)
    return request


def _seconds(fields: dict[str, Any], model: Model) -> int:
    value = fields.get("duration", int(model.durations[0]))
    if type(value) is not int:
        raise invalid("duration", "'duration' must be an integer.")
    if value not in model.durations:
        raise invalid("duration", f"Unsupported duration '{value}' for model '{model.id}'.")
    return value


def _sound(fields: dict[str, Any], model: Model) -> bool:
    value = fields.get("sound", False)
    if type(value) is not bool:
        raise invalid("sound", "'sound' must be a boolean.")
    if value and not model.supports_sound:
        raise invalid("sound", f"Model '{model.id}' does not support sound.")
    return value
