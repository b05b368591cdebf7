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


def with_earlier_bill(error: ErrorT, unsaved: Sequence[Entry], saved: Sequence[Entry] = ()) -> ErrorT:
    """
    Return an error with the bill of what earlier tries requested.

    :param error: Of a try that was not billed itself.
    :param unsaved: The entries of requests whose images or video are still to be delivered.
    :param saved: Those of requests whose files are saved.
    """
    owed = [entry.generation for entry in unsaved if entry.generation is not None]
    done = [entry.generation for entry in saved if entry.generation is not None]
    return error.with_bill(
        [generation.id for generation in owed],
        total_cost([*owed, *done]),
        saved=[generation.id for generation in done],
        unknown=sum(entry.unknown_requests for entry in (*unsaved, *saved)),
    )
