# SPDX-License-Identifier: Apache-2.0
"""A validated request for one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.simulator.fields import (
    read_choice,
    read_model,
    read_prompt,
    read_references,
    refuse_unknown,
    refuse_unsafe,
)
from airflow_provider_getimg.simulator.pictures import Picture, dimensions

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from airflow_provider_getimg.simulator.catalogue import Model

FORMATS = ("jpeg", "png", "webp")
FIELDS = ("model", "prompt", "aspect_ratio", "resolution", "output_format", "images")


@dataclass(frozen=True)
class ImageRequest:
    """A request for one image, with every default filled in."""

    model: Model
    prompt: str
    aspect_ratio: str
    resolution: str
    output_format: str

    @property
    def price(self) -> Decimal:
        """The price of the image, in USD."""
        return self.model.price(self.resolution)

    def picture(self) -> Picture:
        """Return the picture to draw for it."""
        width, height = dimensions(self.aspect_ratio, self.resolution)
        caption = (
            f"{self.model.id}  ·  {self.aspect_ratio}  ·  {self.resolution}  ·  drawn by getimg-simulator"
        )
        return Picture(self.prompt, caption, width, height, self.output_format)


def check(fields: dict[str, Any], blocked_words: Iterable[str]) -> ImageRequest:
    """Check the fields in the order of the endpoint's documentation, then against the content policy."""
    model = read_model(fields, "image")
    prompt = read_prompt(fields)
    refuse_unknown(fields, FIELDS)
    request = ImageRequest(
        model=model,
        prompt=prompt,
        aspect_ratio=read_choice(fields, "aspect_ratio", model.aspect_ratios, f" for model '{model.id}'"),
        resolution=read_choice(fields, "resolution", model.resolutions, f" for model '{model.id}'"),
        output_format=read_choice(fields, "output_format", FORMATS, ""),
    )
    refuse_unsafe(prompt, read_references(fields.get("images", []), model), blocked_words)
    return request
