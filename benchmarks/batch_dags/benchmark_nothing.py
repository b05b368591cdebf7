# SPDX-License-Identifier: Apache-2.0
"""A pair of tasks that do nothing: what Airflow itself costs. A run's conf holds ``images``, the number of pairs."""

from __future__ import annotations

from airflow.sdk import DAG, task_group

from benchmarks.dag_parts import SETTINGS, DoNothing, write_prompts

with DAG(dag_id="benchmark_nothing", schedule=None, **SETTINGS):

    @task_group
    def do_nothing(prompt: str) -> None:
        """Do nothing, twice."""
        DoNothing(task_id="first") >> DoNothing(task_id="second")

    do_nothing.expand(prompt=write_prompts())
