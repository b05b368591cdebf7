# SPDX-License-Identifier: Apache-2.0
"""Wait until the getimg.ai account has a sufficient balance."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseSensorOperator, PokeReturnValue, conf

from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.hooks.hook_mixin import HookMixin
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.version_compat import RetryPolicyMixin, with_retry_policy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk import RetryPolicy


class GetimgBalanceSensor(HookMixin, RetryPolicyMixin, BaseSensorOperator):
    """
    Wait until the account's balance is at least ``minimum``, and push the balance to XCom.

    Run in the evening, it reports an empty account before the night's generations are refused with a 402. The request
    is free. The XCom is the balance in USD, a number such as ``12.34``.

    It works like any other sensor: it waits in ``mode="poke"`` or ``"reschedule"``, or in the triggerer
    (``deferrable=True``); ``timeout`` fails it, or skips it with ``soft_fail=True``. The balance is that of the whole
    account: none of it is reserved for the tasks that follow.

    - A **429**, a **5xx** or a **failed connection** is waited out: the next poke checks again.
    - A **wrong key**, or an invalid ``minimum``, fails the task immediately, without retries, even with ``soft_fail``.

    :param minimum: The balance to wait for, in USD, as a string or a number, such as ``"5"`` or ``2.50``. (templated)
    :param getimg_conn_id: The getimg.ai connection. Default ``getimg_default``. (templated)
    :param deferrable: Wait in the triggerer, without a worker slot; it checks every ``poke_interval`` seconds there,
        without ``exponential_backoff``. Default: ``[operators] default_deferrable`` in Airflow's configuration.
    :param retry_policy: Default: :class:`~airflow_provider_getimg.retry.GetimgRetryPolicy`.
    """

    template_fields: Sequence[str] = ("minimum", "getimg_conn_id")
    ui_color = "#efe6ff"

    def __init__(
        self,
        *,
        minimum: Decimal | float | str,
        getimg_conn_id: str = GetimgHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        retry_policy: RetryPolicy | None = RETRY_POLICY,
        **kwargs: Any,
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.minimum = minimum
        self.getimg_conn_id = getimg_conn_id
        self.deferrable = deferrable

    def poke(self, context: Context) -> PokeReturnValue:
        """
        Check the balance once.

        :raises GetimgError: Checking again would fail again, such as for a wrong key.
        """
        balance = self._ask()
        return PokeReturnValue(balance is not None, balance)

    @with_retry_policy
    def execute(self, context: Context) -> float:
        """
        Wait for the balance, and return it.

        :raises GetimgError: Checking again would fail again, such as for a wrong key.
        """
        if not self.deferrable:
            balance: float = super().execute(context)
            return balance
        enough = self._ask()
        if enough is None:
            from airflow_provider_getimg.triggers.balance import GetimgBalanceTrigger

            self.defer(
                trigger=GetimgBalanceTrigger(
                    minimum=str(self.minimum),
                    poke_interval=self.poke_interval,
                    getimg_conn_id=self.getimg_conn_id,
                ),
                method_name="execute_complete",
                timeout=timedelta(seconds=self.timeout),
            )
        return enough

    @with_retry_policy
    def execute_complete(self, context: Context, event: dict[str, str]) -> float:
        """
        Return the balance that the trigger saw.

        :raises GetimgError: Checking again would fail again, such as for a wrong key.
        """
        from airflow_provider_getimg.api import errors

        if "error" in event:
            raise getattr(errors, event["error"])(event["message"])
        self.log.info("The balance is %s USD.", event["balance"])
        return float(event["balance"])

    def on_kill(self) -> None:
        """Abort the request in flight."""
        client = self.hook.__dict__.get("client")
        if client is not None:
            client.abort()

    def _ask(self) -> float | None:
        with self.hook:
            balance = self.hook.balance_of_at_least(self.minimum)
        return None if balance is None else float(balance)
