# SPDX-License-Identifier: Apache-2.0
"""Whether the account's balance is enough, before a request that is billed."""

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

    :raises ConnectionConfigError: The account has another currency, which prices and limits can't be compared with.
    """
    if balance.currency != CURRENCY:
        raise ConnectionConfigError(
            f"The account's balance must be in {CURRENCY}, got {quote(balance.currency)}: it can't be compared."
        )
    return balance.balance


def check_balance(client: GetimgClient, cost: Decimal) -> Decimal:
    """
    Return the balance in USD if it covers a cost, before the first request. Free.

    :param cost: What is about to be spent, in USD.
    :raises InsufficientBalanceError: It doesn't.
    """
    balance = in_usd(client.get_balance())
    if balance < cost:
        raise InsufficientBalanceError(
            f"The account's balance must be at least {cost} USD, got {balance} USD. {PREPAID}"
        )
    return balance
