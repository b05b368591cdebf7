# SPDX-License-Identifier: Apache-2.0
"""The simulator's models: accepted parameters and prices."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

COMMON_RATIOS = ("1:1", "16:9", "9:16", "2:3", "3:2", "4:3", "3:4")
WIDE_RATIOS = (*COMMON_RATIOS, "4:5", "5:4", "21:9")


@dataclass(frozen=True)
class Rate:
    """One line of a price list: USD per unit, as a decimal string."""

    unit_price: str
    resolution: str | None = None
    billable_unit: str = "image"
    sound: str = "not_applicable"


@dataclass(frozen=True)
class Model:
    """A model in the catalogue. The first ratio, resolution and duration are the defaults."""

    id: str
    name: str
    type: str
    aspect_ratios: tuple[str, ...]
    resolutions: tuple[str, ...]
    rates: tuple[Rate, ...]
    references: dict[str, int] = field(default_factory=dict)
    durations: tuple[float, ...] = ()
    supports_sound: bool = False
    # Price of an image or a second that the price list omits: an unlisted price is unknown, not zero.
    unlisted_price: str = "0.05"
    created_at: str = "2026-01-15T09:00:00.000Z"

    def price(self, resolution: str) -> Decimal:
        """Return the price of one image at this resolution, in USD."""
        for rate in self.rates:
            if rate.resolution in (resolution, None):
                return Decimal(rate.unit_price)
        return Decimal(self.unlisted_price)

    def second_price(self, resolution: str, *, sound: bool) -> Decimal:
        """Return the price of one second of video, in USD."""
        wanted = ("sound_on" if sound else "sound_off", "not_applicable")
        for name in wanted:
            for rate in self.rates:
                if rate.sound == name and rate.resolution in (resolution, None):
                    return Decimal(rate.unit_price)
        return Decimal(self.unlisted_price)

    def public(self) -> dict[str, Any]:
        """Return the model as ``/v2/models`` shows it."""
        return {
            "id": self.id,
            "name": self.name,
            "type": self.type,
            "created_at": self.created_at,
            "supports_sound": self.supports_sound,
            "supported_aspect_ratios": list(self.aspect_ratios),
            "supported_resolutions": list(self.resolutions),
            "supported_durations": list(self.durations),
            "supported_references": dict(self.references),
            "pricing": {
                "currency": "USD",
                # Sorted by unit price, as the vendor's client documents.
                "rates": [
                    {
                        "billable_unit": rate.billable_unit,
                        "unit_price": rate.unit_price,
                        "resolution": rate.resolution,
                        "sound": rate.sound,
                    }
                    for rate in sorted(self.rates, key=lambda rate: Decimal(rate.unit_price))
                ],
            },
        }


# The two documented ids, and invented ones that differ in ways that can trip up a client.
MODELS: dict[str, Model] = {
    model.id: model
    for model in (
        Model(
            id="seedream-5-lite",
            name="Seedream 5 Lite",
            type="image",
            aspect_ratios=COMMON_RATIOS,
            resolutions=("1K", "2K"),
            rates=(Rate("0.04"),),
            references={"reference_image": 8},
        ),
        Model(
            id="atelier-pro",
            name="Atelier Pro",
            type="image",
            aspect_ratios=WIDE_RATIOS,
            resolutions=("2K", "1K", "4K"),
            rates=(Rate("0.06", "1K"), Rate("0.09", "2K"), Rate("0.24", "4K")),
            references={"reference_image": 4},
        ),
        Model(
            id="sketch-mini",
            name="Sketch Mini",
            type="image",
            aspect_ratios=("1:1", "3:2"),
            resolutions=("1K",),
            rates=(Rate("0.0025", "1K"),),
        ),
        Model(
            id="preview-unpriced",
            name="Preview (no price yet)",
            type="image",
            aspect_ratios=("16:9", "1:1"),
            resolutions=("1K", "2K"),
            rates=(),
            references={"reference_image": 1},
        ),
        Model(
            id="seedance-v1-pro",
            name="Seedance V1 Pro",
            type="video",
            aspect_ratios=("16:9", "9:16", "1:1"),
            resolutions=("720p", "480p", "1080p"),
            rates=(
                Rate("0.03", "480p", "video_second"),
                Rate("0.06", "720p", "video_second"),
                Rate("0.13", "1080p", "video_second"),
            ),
            references={"first_frame": 1, "last_frame": 1},
            durations=(5.0, 10.0),
        ),
        Model(
            id="reel-sound",
            name="Reel with Sound",
            type="video",
            aspect_ratios=("9:16", "16:9"),
            resolutions=("720p",),
            rates=(
                Rate("0.05", "720p", "video_second", "sound_off"),
                Rate("0.08", "720p", "video_second", "sound_on"),
            ),
            references={"reference_image": 3, "first_frame": 1},
            durations=(4.0, 8.0),
            supports_sound=True,
        ),
    )
}
