# SPDX-License-Identifier: Apache-2.0
"""What earlier tries were billed, in an error of a try that did not get far enough to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from airflow_provider_getimg.s3.plan import total_cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_getimg.api.errors import GetimgError
    from airflow_provider_getimg.durable.ledger import Entry

ErrorT = TypeVar("ErrorT", bound="GetimgError")


def with_earlier_bill(error: ErrorT, entries: Sequence[Entry]) -> ErrorT:
    """
    Return an error with the bill of what earlier tries requested and did not deliver.

    :param error: It came before anything was sent.
    :param entries: Those of requests whose images or video are still to be delivered.
    """
    owed = [entry.generation for entry in entries if entry.generation is not None]
    unknown = len(entries) - len(owed)
    if not owed:
        return type(error)(error.message, billed="unknown") if unknown else error
    if unknown:
        requests = "request" if unknown == 1 else "requests"
        error = type(error)(f"{unknown} more {requests} may have been billed. {error.message}")
    return error.with_unsaved_bill([generation.id for generation in owed], total_cost(owed))
