# SPDX-License-Identifier: Apache-2.0
"""A batch's spending: the limit, the amount billed, and the price of requests that may yet be billed."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import CostLimitError
from airflow_provider_getimg.api.pricing import image_price

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_getimg.api.requests import ImageRequest
    from airflow_provider_getimg.api.types import Model


class Budget:
    """
    The budget of a batch, in USD. Thread-safe.

    Without a limit, it only adds up the amounts billed. With one, each request reserves its price before it is sent; a
    request that may have been billed keeps its reservation.

    :param limit: The most the batch may cost, over all tries since the last Clear; None for no limit.
    :param get_model: Looks up a model in the catalogue.
    :param check_balance: Raises an error if the account can't pay an amount; None to skip the check.
    """

    def __init__(
        self,
        limit: Decimal | None,
        get_model: Callable[[str], Model],
        check_balance: Callable[[Decimal], object] | None = None,
    ) -> None:
        self._limit = limit
        self._get_model = get_model
        self._check_balance = check_balance
        self._prices: dict[tuple[str, str | None], Decimal | None] = {}
        self._lock = threading.Lock()
        #: The amount billed: costs that the API reported, and prices where it reported none.
        self.billed = Decimal(0)
        #: How many other requests were, or may have been, billed: their cost is unknown.
        self.unknown_outcomes = 0
        # Prices of requests in flight, or perhaps billed without a response.
        self._reserved = Decimal(0)

    def price(self, request: ImageRequest) -> Decimal:
        """
        Return the catalogue price of a request; 0 if there is neither a limit nor a balance to check.

        :raises CostLimitError: The catalogue has no price for it.
        """
        if self._limit is None and self._check_balance is None:
            return Decimal(0)
        kind = (request.model, request.resolution)
        if kind not in self._prices:
            self._prices[kind] = image_price(self._get_model(request.model), request.resolution)
        price = self._prices[kind]
        if price is None:
            at = f" at {request.resolution}" if request.resolution else ""
            so = (
                "the balance can't be checked"
                if self._limit is None
                else f"max_cost ({self._limit} USD) can't be enforced"
            )
            raise CostLimitError(
                f"An image of model {request.model!r}{at} has no known price, so {so}. Nothing was sent."
            )
        return price

    def add_earlier_cost(self, amount: Decimal) -> None:
        """Add the cost of earlier tries."""
        with self._lock:
            self.billed += amount

    def add_earlier_unknown(self, requests: int) -> None:
        """Count requests of earlier tries that may have been billed."""
        with self._lock:
            self.unknown_outcomes += requests

    def reserve_earlier(self, amount: Decimal) -> None:
        """Reserve what requests of earlier tries may have cost."""
        with self._lock:
            self._reserved += amount

    def check(self, requests: Iterable[ImageRequest]) -> None:
        """
        Check the total price of all these requests before the first is sent.

        :raises CostLimitError: Together with what was already spent, it exceeds the limit.
        :raises InsufficientBalanceError: The balance is to be checked and does not cover it.
        """
        if self._limit is None and self._check_balance is None:
            return
        prices = [self.price(request) for request in requests]
        cost = sum(prices, Decimal(0))
        spent = self.billed + self._reserved
        if self._limit is not None and spent + cost > self._limit:
            before = f" on top of {spent} USD that were, or may have been, billed before" if spent else ""
            raise CostLimitError(
                f"{len(prices)} {'image costs' if len(prices) == 1 else 'images cost'} {cost} USD{before}, more than max_cost ({self._limit} USD): "
                "nothing was sent."
            )
        if self._check_balance is not None and cost:
            self._check_balance(cost)

    def reserve(self, price: Decimal) -> None:
        """
        Reserve a price before its request is sent.

        :raises CostLimitError: The limit would be exceeded.
        """
        with self._lock:
            spent = self.billed + self._reserved
            if self._limit is not None and spent + price > self._limit:
                raise CostLimitError(
                    f"{spent} USD were, or may have been, billed so far, and another image costs {price} USD, more than max_cost "
                    f"({self._limit} USD) allows: no more requests are sent."
                )
            self._reserved += price

    def release(self, price: Decimal) -> None:
        """Release the price of a request that was not billed."""
        with self._lock:
            self._reserved -= price

    def mark_unknown(self) -> None:
        """Count a request that may have been billed; its price stays reserved."""
        with self._lock:
            self.unknown_outcomes += 1

    def commit(self, price: Decimal, cost: Decimal | None) -> None:
        """Replace a reserved price with the request's cost, or with the price itself if the API gave no cost."""
        with self._lock:
            self._reserved -= price
            self.billed += price if cost is None else cost
