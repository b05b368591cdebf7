# SPDX-License-Identifier: Apache-2.0
"""Adds the bill of earlier tries to the error of a try that failed before it could use their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from airflow_provider_getimg.s3.plan import total_cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_getimg.api.errors import GetimgError
    from airflow_provider_getimg.durable.ledger import Entry

ErrorT = TypeVar("ErrorT", bound="GetimgError")


def with_earlier_bill(error: ErrorT, unsaved: Sequence[Entry], saved: Sequence[Entry] = ()) -> ErrorT:
    """
    Return the error with the bill of earlier tries added.

    :param error: The error of a try that was not billed itself.
    :param unsaved: The entries of requests whose images or video are not delivered yet.
    :param saved: The entries of requests whose files are saved.
    """
    owed = [entry.generation for entry in unsaved if entry.generation is not None]
    done = [entry.generation for entry in saved if entry.generation is not None]
    entries = (*unsaved, *saved)
    replaced = [identity for entry in entries for identity, _ in entry.replaced_costs]
    cost = total_cost([*owed, *done])
    return error.with_bill(
        [*(generation.id for generation in owed), *replaced],
        cost if cost is None else cost + sum(entry.replaced_cost for entry in entries),
        saved=[generation.id for generation in done],
        unknown=sum(entry.unknown_requests for entry in entries),
    )
