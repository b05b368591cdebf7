# SPDX-License-Identifier: Apache-2.0
"""The account as getimg.ai itself reports it, for users who may read its connection in Airflow."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails
from airflow.models.connection import Connection
from airflow.providers.common.compat.sdk import conf

from airflow_provider_getimg.api.errors import GetimgError
from airflow_provider_getimg.hooks.getimg import GetimgHook

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser

_KEPT_SECONDS = 60.0
# The longest that a page waits for getimg.ai.
_MAX_WAIT = 10.0
_MAX_ACCOUNTS = 100


@dataclass(frozen=True)
class AccountSummary:
    """
    The account's balance and its costs by UTC day.

    :param why_not: Why they are unknown, as a sentence; empty if they are known.
    """

    why_not: str = ""
    balance: str = ""
    currency: str = ""
    by_day: dict[date, float] = field(default_factory=dict)
    total: float = 0.0


class Accounts:
    """Queries getimg.ai, and caches the results for a minute."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, date], tuple[float, AccountSummary]] = {}

    async def read(self, user: BaseUser, conn_id: str, first: date) -> AccountSummary:
        """
        Return the account's summary, or why there is none.

        :param first: The first day of the costs.
        """
        if not await asyncio.to_thread(_may_read, user, conn_id):
            return AccountSummary("You may not read this connection.")
        key = (conn_id, first)
        until, account = self._kept.get(key, (0.0, None))
        if account is None or until < time.monotonic():
            try:
                account = await asyncio.wait_for(asyncio.to_thread(_ask, conn_id, first), _MAX_WAIT)
            except TimeoutError:
                account = AccountSummary(f"getimg.ai did not respond within {_MAX_WAIT:g} seconds.")
            if len(self._kept) >= _MAX_ACCOUNTS:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = time.monotonic() + _KEPT_SECONDS, account
        return account


def _may_read(user: BaseUser, conn_id: str) -> bool:
    """Return whether Airflow lets the user read a connection, which may belong to a team from Airflow 3.2 on."""
    has_teams = conf.getboolean("core", "multi_team", fallback=False)
    team_name = Connection.get_team_name(conn_id) if has_teams else None
    details = ConnectionDetails(conn_id=conn_id, team_name=team_name)
    return get_auth_manager().is_authorized_connection(method="GET", details=details, user=user)


def _ask(conn_id: str, first: date) -> AccountSummary:
    try:
        # Users can name any connection that they may read: another service's key must not go to getimg.ai.
        if GetimgHook.get_connection(conn_id).conn_type != GetimgHook.conn_type:
            return AccountSummary(f"Connection {conn_id!r} must have the type {GetimgHook.conn_type!r}.")
        with GetimgHook(conn_id) as hook:
            balance = hook.get_balance()
            costs = hook.get_costs(
                datetime(first.year, first.month, first.day, tzinfo=UTC), datetime.now(UTC)
            )
    except GetimgError as error:
        return AccountSummary(error.message)
    except Exception as error:
        # From a secrets backend, whose message may say anything.
        return AccountSummary(f"The connection could not be read: {type(error).__name__}.")
    return AccountSummary(
        balance=str(balance.balance),
        currency=balance.currency,
        by_day={day.date: float(day.cost) for day in costs.data},
        total=float(costs.total_cost),
    )
