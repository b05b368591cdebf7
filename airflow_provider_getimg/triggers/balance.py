# SPDX-License-Identifier: Apache-2.0
"""Wait in the triggerer until the getimg.ai account has a sufficient balance."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_getimg.api.errors import ConnectionUnavailableError, GetimgError
from airflow_provider_getimg.hooks.getimg import GetimgHook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: How many consecutive times the connection may be unreadable before the wait fails.
CONNECTION_READS = 5


class GetimgBalanceTrigger(BaseTrigger):
    """
    Fires when the account's balance is at least ``minimum``, or when checking again would be pointless.

    The event is ``{"balance": "12.34"}``, or ``{"error": ..., "message": ...}`` with the name of a class in
    ``airflow_provider_getimg.api.errors``.

    :param minimum: The balance to wait for, in USD.
    :param poke_interval: Seconds to wait before each request.
    :param getimg_conn_id: The getimg.ai connection. Only its id is stored.
    """

    def __init__(self, minimum: str, poke_interval: float, getimg_conn_id: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.minimum = minimum
        self.poke_interval = poke_interval
        self.getimg_conn_id = getimg_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and the arguments that Airflow stores."""
        return (
            "airflow_provider_getimg.triggers.balance.GetimgBalanceTrigger",
            {
                "minimum": self.minimum,
                "poke_interval": self.poke_interval,
                "getimg_conn_id": self.getimg_conn_id,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Check the balance every ``poke_interval`` seconds, in a thread so as not to block other triggers."""
        balance = None
        failed_reads = 0
        try:
            while balance is None:
                # Sleep first: the sensor has just checked.
                await asyncio.sleep(self.poke_interval)
                try:
                    # A new hook each time: during a long wait, the connection may get another key.
                    with GetimgHook(self.getimg_conn_id) as hook:
                        # In an asgiref thread: from any other thread, a request to Airflow's API crashes the triggerer of Airflow
                        # 3.1 ("Response read out of order!").
                        await sync_to_async(hook.get_conn)()
                        # If the trigger is canceled, leaving this block aborts the request in flight.
                        balance = await asyncio.to_thread(hook.balance_of_at_least, self.minimum)
                        failed_reads = 0
                except ConnectionUnavailableError as error:
                    # The sensor could read the connection a moment ago: check again later.
                    failed_reads += 1
                    if failed_reads == CONNECTION_READS:
                        raise
                    self.log.warning("%s", error.message)
        except GetimgError as error:
            yield _event(error=type(error).__name__, message=error.message)
        else:
            yield _event(balance=str(balance))


def _event(**payload: str) -> TriggerEvent:
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]
