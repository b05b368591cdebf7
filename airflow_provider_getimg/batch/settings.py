# SPDX-License-Identifier: Apache-2.0
"""The settings for all rows of a batch, checked before anything is read or sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_getimg.api.parameters import (
    checked_choice,
    checked_count,
    checked_file_size,
    checked_flag,
    checked_seconds,
)
from airflow_provider_getimg.api.pricing import checked_max_cost
from airflow_provider_getimg.durable.paid_request import UNKNOWN_OUTCOME
from airflow_provider_getimg.s3.copier import IF_EXISTS
from airflow_provider_getimg.s3.save_many import threads_for

if TYPE_CHECKING:
    from decimal import Decimal

# Senders in addition to those with a slot: each has a row ready, and holds its reference images.
_READY = 8


@dataclass(frozen=True)
class BatchSettings:
    """
    The settings of a batch, documented where users set them.

    See :class:`~airflow_provider_getimg.operators.image_batch.GenerateImagesToS3Operator`.
    """

    concurrency: int
    transfer_concurrency: int
    max_bytes: int
    max_cost: Decimal | None
    check_balance: bool
    if_exists: str
    on_unknown_outcome: str
    rate_limit_wait: float

    @classmethod
    def checked(cls, operator: Any) -> Self:
        """
        Read and check the settings of an operator whose templates are rendered.

        :param operator: Has each setting as an attribute, as the user gave it.
        :raises InvalidInputError: A setting can't be used.
        """
        return cls(
            concurrency=checked_count("concurrency", operator.concurrency),
            transfer_concurrency=checked_count("transfer_concurrency", operator.transfer_concurrency),
            max_bytes=checked_file_size("max_bytes", operator.max_bytes),
            max_cost=checked_max_cost(operator.max_cost),
            check_balance=checked_flag("check_balance", operator.check_balance),
            if_exists=checked_choice("if_exists", operator.if_exists, IF_EXISTS),
            on_unknown_outcome=checked_choice(
                "on_unknown_outcome", operator.on_unknown_outcome, UNKNOWN_OUTCOME
            ),
            rate_limit_wait=checked_seconds("rate_limit_wait", operator.rate_limit_wait),
        )

    @property
    def senders(self) -> int:
        """Number of threads that send requests: more than slots, so that a row is ready whenever a slot is free."""
        return self.concurrency + min(self.concurrency, _READY)

    @property
    def uploaders(self) -> int:
        """Number of threads that save images."""
        return threads_for(self.transfer_concurrency)
