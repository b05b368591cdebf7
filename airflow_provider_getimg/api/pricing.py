# SPDX-License-Identifier: Apache-2.0
"""What an image or a video costs, from the catalogue. A price that isn't known is no price, and never zero."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import CostLimitError
from airflow_provider_getimg.api.parameters import checked_amount

if TYPE_CHECKING:
    from airflow_provider_getimg.api.types import Model, Rate

CURRENCY = "USD"


def image_price(model: Model, resolution: str | None) -> Decimal | None:
    """
    Return the price in USD of one image, or None where the catalogue doesn't say.

    :param model: The model, with its rates.
    :param resolution: The requested resolution; None for the model's default, its first.
    """
    return _highest_price(_rates(model, "image", resolution))


def video_price(
    model: Model, resolution: str | None, duration: float | None, sound: bool | None
) -> Decimal | None:
    """
    Return the price in USD of one video, or None where the catalogue doesn't say.

    :param model: The model, with its rates.
    :param resolution: The requested resolution; None for the model's default, its first.
    :param duration: In seconds; None for the model's default, its first.
    :param sound: Whether it is to have sound; None where the request doesn't say, so that it may.
    """
    if duration is None:
        duration = next(iter(model.supported_durations), None)
    rates = _rates(model, "video_second", resolution)
    wanted = {True: ("sound_on",), False: ("sound_off",), None: ("sound_on", "sound_off")}[sound]
    # A rate that doesn't depend on sound is for what has none of its own.
    price = _highest_price(
        [rate for rate in rates if rate.sound in wanted]
        or [rate for rate in rates if rate.sound in ("not_applicable", None)]
    )
    return None if price is None or duration is None else price * Decimal(f"{duration:g}")


def _rates(model: Model, billable_unit: str, resolution: str | None) -> list[Rate]:
    """Return a resolution's own rates, or else those for any resolution."""
    if model.pricing.currency != CURRENCY:
        return []
    if resolution is None and model.supported_resolutions:
        resolution = model.supported_resolutions[0]
    rates = [rate for rate in model.pricing.rates if rate.billable_unit == billable_unit]
    exact = [rate for rate in rates if rate.resolution is not None and rate.resolution == resolution]
    return exact or [rate for rate in rates if rate.resolution is None]


def _highest_price(rates: list[Rate]) -> Decimal | None:
    """Return the highest price: two rates for the same thing are not documented, and this one is no surprise."""
    return max((rate.unit_price for rate in rates), default=None)


def checked_max_cost(max_cost: object) -> Decimal | None:
    """
    Return a limit in USD as a decimal; None for no limit, as a param without a value renders in native Python types.

    An empty text is an error: a template that failed to render a limit must not mean that there is none.

    :raises InvalidInputError: It is not a number, or below zero.
    """
    return None if max_cost is None else checked_amount("max_cost", max_cost)


def check_price(price: Decimal | None, what: str, max_cost: Decimal) -> Decimal:
    """
    Return a price if it is within ``max_cost``.

    :param price: In USD; None where the catalogue doesn't say.
    :param what: What has this price, for the message.
    :raises CostLimitError: It is over, or not known.
    """
    if price is None:
        raise CostLimitError(
            f"{what} has no known price, so that max_cost ({max_cost} USD) can't be kept: nothing was sent."
        )
    if price > max_cost:
        raise CostLimitError(
            f"{what} costs {price} USD, more than max_cost ({max_cost} USD): nothing was sent."
        )
    return price


def named(kind: str, model: Model, resolution: str | None) -> str:
    """Return how an image or a video of a model is called in messages."""
    return f"{kind} of model {model.id!r}{f' at {resolution}' if resolution else ''}"
