# SPDX-License-Identifier: Apache-2.0
"""Check the account's balance before a billed request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import (
    PREPAID,
    ConnectionConfigError,
    InsufficientBalanceError,
)
from airflow_provider_getimg.api.pricing import CURRENCY
from airflow_provider_getimg.api.quote import quote

if TYPE_CHECKING:
    from decimal import Decimal

    from airflow_provider_getimg.api.client import GetimgClient
    from airflow_provider_getimg.api.types import Balance


def in_usd(balance: Balance) -> Decimal:
    """
    Return the balance in USD.

    :raises ConnectionConfigError: The account's currency is not USD: prices and limits can't be compared with it.
    """
    if balance.currency != CURRENCY:
        raise ConnectionConfigError(
            f"The account's balance must be in {CURRENCY}, got {quote(balance.currency)}, so it can't be compared with prices."
        )
    return balance.balance


def check_balance(client: GetimgClient, cost: Decimal) -> Decimal:
    """
    Check before the first request that the balance covers a cost, and return it in USD. Free.

    :param cost: The planned spending, in USD.
    :raises InsufficientBalanceError: The balance is lower.
    """
    balance = in_usd(client.get_balance())
    if balance < cost:
        raise InsufficientBalanceError(
            f"The account's balance must be at least {cost} USD, got {balance} USD. {PREPAID}"
        )
    return balance
