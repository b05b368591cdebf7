# SPDX-License-Identifier: Apache-2.0
"""The costs of a period, computed from the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.simulator.errors import invalid, missing
from airflow_provider_getimg.simulator.request_log import timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_getimg.simulator.request_log import RequestLog

MAX_PERIOD = timedelta(days=180)


def costs(ledger: RequestLog, query: Mapping[str, str]) -> dict[str, Any]:
    """Return what was billed in the query's period: one entry for each UTC date, even if it is 0."""
    start, end = _moment(query, "start"), _moment(query, "end")
    if end <= start:
        raise invalid("end", "'end' must be after 'start'.")
    if end - start > MAX_PERIOD:
        raise invalid("end", f"'end' must be at most {MAX_PERIOD.days} days after 'start'.")
    billed = ledger.costs(start, end)
    dates = [start.date() + timedelta(days=day) for day in range((end.date() - start.date()).days + 1)]
    return {
        "currency": "USD",
        "start": timestamp(start),
        "end": timestamp(end),
        "total_cost": float(sum(billed.values(), Decimal(0))),
        "data": [{"date": date.isoformat(), "cost": float(billed.get(date, Decimal(0)))} for date in dates],
    }


def _moment(query: Mapping[str, str], name: str) -> datetime:
    text = query.get(name)
    if text is None:
        raise missing(name)
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise invalid(name, f"'{name}' must name its time zone, such as 2026-01-31T00:00:00Z.")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        message = f"'{name}' must be an ISO 8601 timestamp with a time zone, such as 2026-01-31T00:00:00Z."
        raise invalid(name, message) from None
