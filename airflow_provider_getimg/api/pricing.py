# SPDX-License-Identifier: Apache-2.0
"""What an image costs, from the catalogue. A price that isn't known is no price, and never zero."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import CostLimitError, InvalidInputError

if TYPE_CHECKING:
    from airflow_provider_getimg.api.types import Model

CURRENCY = "USD"


def image_price(model: Model, resolution: str | None) -> Decimal | None:
    """
    Return the price in USD of one image, or None where the catalogue doesn't tell.

    :param model: The model, with its rates.
    :param resolution: The requested resolution; None for the model's default, its first.
    """
    if model.pricing.currency != CURRENCY:
        return None
    if resolution is None and model.supported_resolutions:
        resolution = model.supported_resolutions[0]
    rates = [rate for rate in model.pricing.rates if rate.billable_unit == "image"]
    exact = [
        rate.unit_price for rate in rates if rate.resolution is not None and rate.resolution == resolution
    ]
    general = [rate.unit_price for rate in rates if rate.resolution is None]
    # Two rates for the same thing are not documented: the dearer one is the one not to be surprised by.
    prices = exact or general
    return max(prices) if prices else None


def checked_max_cost(max_cost: object) -> Decimal | None:
    """
    Return a limit in USD as a decimal; None for no limit.

    An empty text is an error: a template that failed to render a limit must not mean that there is none.

    :raises InvalidInputError: It is no number, or below zero.
    """
    if max_cost is None:
        return None
    text = str(max_cost).strip()
    try:
        limit = Decimal("NaN" if isinstance(max_cost, bool) or "_" in text else text)
    except InvalidOperation:
        limit = Decimal("NaN")
    if not limit.is_finite() or limit < 0:
        raise InvalidInputError(f"max_cost must be an amount in USD, such as '0.05', got {max_cost!r}.")
    return limit


def check_price(model: Model, resolution: str | None, max_cost: Decimal) -> Decimal:
    """
    Return the price of one image if it is within ``max_cost``.

    :raises CostLimitError: It is over, or the catalogue doesn't tell it.
    """
    price = image_price(model, resolution)
    what = f"An image of model {model.id!r}{f' at {resolution}' if resolution else ''}"
    if price is None:
        raise CostLimitError(
            f"{what} has no known price, so that max_cost ({max_cost} USD) can't be kept: nothing was sent."
        )
    if price > max_cost:
        raise CostLimitError(
            f"{what} costs {price} USD, more than max_cost ({max_cost} USD): nothing was sent."
        )
    return price
