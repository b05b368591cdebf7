# SPDX-License-Identifier: Apache-2.0
"""Prices of images and videos, from the catalogue. An unknown price is None, never zero."""

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
    Return the price of one image in USD, or None if the catalogue doesn't say.

    :param model: The model, with its rates.
    :param resolution: The requested resolution; None for the model's default, the first in its list.
    """
    return _highest_price(_rates(model, "image", resolution))


def video_price(
    model: Model, resolution: str | None, duration: float | None, sound: bool | None
) -> Decimal | None:
    """
    Return the price of one video in USD, or None if the catalogue doesn't say.

    :param model: The model, with its rates.
    :param resolution: The requested resolution; None for the model's default, the first in its list.
    :param duration: In seconds; None for the model's default, the first in its list.
    :param sound: Whether the video has sound; None if the request doesn't say, so it may.
    """
    if duration is None:
        duration = next(iter(model.supported_durations), None)
    rates = _rates(model, "video_second", resolution)
    wanted = {True: ("sound_on",), False: ("sound_off",), None: ("sound_on", "sound_off")}[sound]
    # Fall back to rates that don't depend on sound.
    price = _highest_price(
        [rate for rate in rates if rate.sound in wanted]
        or [rate for rate in rates if rate.sound in ("not_applicable", None)]
    )
    return None if price is None or duration is None else price * Decimal(f"{duration:g}")


def _rates(model: Model, billable_unit: str, resolution: str | None) -> list[Rate]:
    """Return the rates for a resolution, or else those for any resolution."""
    if model.pricing.currency != CURRENCY:
        return []
    if resolution is None and model.supported_resolutions:
        resolution = model.supported_resolutions[0]
    rates = [rate for rate in model.pricing.rates if rate.billable_unit == billable_unit]
    exact = [rate for rate in rates if rate.resolution is not None and rate.resolution == resolution]
    return exact or [rate for rate in rates if rate.resolution is None]


def _highest_price(rates: list[Rate]) -> Decimal | None:
    """Return the highest price: duplicate rates are not documented, and the bill can't exceed the highest one."""
    return max((rate.unit_price for rate in rates), default=None)


def checked_max_cost(max_cost: object) -> Decimal | None:
    """
    Return a limit in USD as a decimal; None for no limit: an unset param renders as None in native Python types.

    An empty string is an error: a template that failed to render a limit must not mean no limit.

    :raises InvalidInputError: It is not a number, or is below zero.
    """
    return None if max_cost is None else checked_amount("max_cost", max_cost)


def check_price(price: Decimal | None, what: str, max_cost: Decimal) -> Decimal:
    """
    Return a price if it is within ``max_cost``.

    :param price: In USD; None if the catalogue doesn't say.
    :param what: The priced item, for the message.
    :raises CostLimitError: It is over the limit, or unknown.
    """
    if price is None:
        raise CostLimitError(
            f"{what} has no known price, so max_cost ({max_cost} USD) can't be enforced. Nothing was sent."
        )
    if price > max_cost:
        raise CostLimitError(
            f"{what} costs {price} USD, more than max_cost ({max_cost} USD): nothing was sent."
        )
    return price


def named(kind: str, model: Model, resolution: str | None) -> str:
    """Describe an image or a video of a model, for messages."""
    return f"{kind} of model {model.id!r}{f' at {resolution}' if resolution else ''}"
