# SPDX-License-Identifier: Apache-2.0
"""Identifies the current try of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


@dataclass(frozen=True, slots=True)
class Try:
    """
    A try of a task instance.

    :param number: ``ti.try_number``, from 1. A Clear doesn't reset it.
    :param epoch: ``ti.max_tries``: constant across automatic retries, raised when a user clears the task.
    """

    number: int
    epoch: int

    @classmethod
    def of(cls, context: Context) -> Self:
        """Return the current try."""
        return cls(int(context["ti"].try_number), int(context["ti"].max_tries))

    @property
    def is_first(self) -> bool:
        """Whether no other try can have sent anything."""
        return self.number == 1

    @property
    def is_last(self) -> bool:
        """Whether Airflow won't retry after it."""
        return self.number > self.epoch
