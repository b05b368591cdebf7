# SPDX-License-Identifier: Apache-2.0
"""The costs that tasks recorded, summed by day, by DAG and by model."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException

from airflow_provider_getimg.plugin.airflow_api import NEWEST_FIRST, Filter
from airflow_provider_getimg.plugin.pictures import amount
from airflow_provider_getimg.records import COST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_getimg.plugin.airflow_api import AirflowApi, Task

DAYS = 30
# Airflow lists records without their values: each value takes another request, so a page view reads at most this many.
# They are cached, and the next view continues.
_MAX_NEW_RECORDS = 400
_KEPT_RECORDS = 50_000
_PAGE = 100
_AT_ONCE = 8
_UNKNOWN = "unknown"
# The maximum number of rows in a table.
_ROWS = 50


@dataclass
class Spend:
    """
    The spend of the last :data:`DAYS` days, including today, in USD.

    :param first: The first of the days, in UTC.
    :param by_day: The spend of each day that has records.
    :param records: How many records were counted.
    :param uncounted: How many records could not be counted, as their values are not in Airflow's database.
    :param is_partial: Whether there are older records that were not counted.
    """

    first: date
    by_day: defaultdict[date, float] = field(default_factory=lambda: defaultdict(float))
    by_dag: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_model: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    records: int = 0
    uncounted: int = 0
    is_partial: bool = False

    @classmethod
    def until(cls, today: date) -> Spend:
        """Return an empty spend for the days up to today."""
        return cls(today - timedelta(days=DAYS - 1))

    @property
    def days(self) -> list[date]:
        """All of the days, oldest first."""
        return [self.first + timedelta(days=number) for number in range(DAYS)]

    @property
    def total(self) -> float:
        """The sum of all days."""
        return math.fsum(self.by_day.values())

    def add(self, day: date, dag_id: str, models: dict[str, float]) -> None:
        """Add a record."""
        self.records += 1
        cost = math.fsum(models.values())
        self.by_day[day] += cost
        self.by_dag[dag_id] += cost
        for model, part in models.items():
            self.by_model[model] += part


class CostRecords:
    """Reads what tasks recorded, and caches the values: a record with the same time is the same."""

    def __init__(self) -> None:
        # None for a record whose value Airflow's database doesn't hold.
        self._kept: dict[Task, dict[str, float] | None] = {}

    async def spend(self, api: AirflowApi, dag_id: str, today: date) -> Spend:
        """
        Return the spend of the DAGs that the viewer may read.

        :param dag_id: The only DAG to count; all of them if empty.
        """
        spend = Spend.until(today)
        new, offset = 0, 0
        while True:
            tasks, total = await api.list_tasks(
                Filter(dag_id), offset=offset, limit=_PAGE, key=COST, order_by=NEWEST_FIRST
            )
            recent = [task for task in tasks if _day(task) >= spend.first]
            readable = await api.readable(recent)
            missing = [task for task in readable if task not in self._kept]
            room = _MAX_NEW_RECORDS - new
            await self._read(api, missing[:room])
            new += len(missing[:room])
            for task in readable:
                if task not in self._kept:
                    continue
                models = self._kept[task]
                if models is None:
                    spend.uncounted += 1
                else:
                    spend.add(_day(task), task.dag_id, models)
            offset += len(tasks)
            spend.is_partial = len(missing) > room
            # The newest records come first.
            if spend.is_partial or len(recent) < len(tasks) or not tasks or offset >= total:
                return spend

    async def _read(self, api: AirflowApi, tasks: list[Task]) -> None:
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def read(task: Task) -> None:
            async with at_once:
                try:
                    value, _ = await api.xcom(task, COST)
                except HTTPException as error:
                    # Cleared since it was listed.
                    if error.status_code != 404:
                        raise
                    value = {}
            # A custom XCom backend leaves a reference, which Airflow's API doesn't follow.
            self._kept[task] = None if value is None or isinstance(value, str) else models_of(value)

        await asyncio.gather(*map(read, tasks))
        if len(self._kept) > _KEPT_RECORDS:
            # Drop the oldest, which leave the page first.
            newest = sorted(self._kept, key=lambda task: task.saved_at, reverse=True)[:_KEPT_RECORDS]
            self._kept = {task: self._kept[task] for task in newest}


def models_of(value: Any) -> dict[str, float]:
    """
    Return the cost by model of a record, which may have been edited: invalid amounts are left out.

    The parts add up to the record's ``cost``, if it has one: the rest goes to an unknown model.
    """
    if not isinstance(value, dict):
        return {}
    models = value.get("models")
    parts = {
        str(name): usd
        for name, part in (models.items() if isinstance(models, dict) else ())
        if (usd := amount(part)) is not None
    }
    cost = amount(value.get("cost"))
    if cost is not None and (rest := cost - math.fsum(parts.values())) > 1e-9:
        parts[_UNKNOWN] = parts.get(_UNKNOWN, 0.0) + rest
    return parts


def _day(task: Task) -> date:
    return datetime.fromisoformat(task.saved_at).astimezone(UTC).date()


@dataclass(frozen=True)
class Bar:
    """
    A day of the chart.

    :param height: The height of its bar, 0 to 100.
    """

    day: date
    cost: float
    height: float


def bars(spend: Spend) -> list[Bar]:
    """Return a bar for each day; the highest is 100."""
    highest = max(spend.by_day.values(), default=0) or 1
    return [Bar(day, spend.by_day[day], round(100 * spend.by_day[day] / highest, 1)) for day in spend.days]


def largest(costs: Mapping[str, float]) -> list[tuple[str | None, float]]:
    """Return names with their costs, most expensive first; those that don't fit on a page are summed up under None."""
    ranked: list[tuple[str | None, float]] = sorted(costs.items(), key=lambda item: -item[1])
    rest = math.fsum(cost for _, cost in ranked[_ROWS:])
    return [*ranked[:_ROWS], *([(None, rest)] if ranked[_ROWS:] else [])]
