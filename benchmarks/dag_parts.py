# SPDX-License-Identifier: Apache-2.0
"""What the DAGs of mapped pairs share. It imports only Airflow, as each task's process imports it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, task

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Arguments of each DAG. A task that a busy machine starts too late is retried soon, not after Airflow's default of five minutes.
SETTINGS: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1),
    "default_args": {"retries": 2, "retry_delay": timedelta(seconds=1)},
}
#: What all requests share.
REQUEST: dict[str, Any] = {"model": "sketch-mini", "output_format": "jpeg"}


class DoNothing(BaseOperator):
    """Does nothing, in a process of its own, which an EmptyOperator does not get."""

    def execute(self, context: Context) -> None:
        """Do nothing."""


@task
def write_prompts(dag_run: Any = None) -> list[str]:
    """Return a prompt for each image that the run's conf requests."""
    return [f"a benchmark, {number}" for number in range(dag_run.conf["images"])]
