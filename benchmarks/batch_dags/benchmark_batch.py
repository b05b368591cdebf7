# SPDX-License-Identifier: Apache-2.0
"""
Two ways to make the same images: a pair of tasks for each, and one task for all.

A run's conf holds ``bucket``, and ``images`` (mapped) or ``requests``, ``concurrency`` and optionally ``conn`` (batch).
"""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, task, task_group

from airflow_provider_getimg.durable import task_state
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator
from benchmarks.process import Measurement

if TYPE_CHECKING:
    from airflow.sdk import Context

START = datetime(2026, 1, 1)
# A task that a busy machine starts too late is retried soon, not after Airflow's default of five minutes.
TRIES = {"retries": 2, "retry_delay": timedelta(seconds=1)}
REQUEST: dict[str, Any] = {"model": "sketch-mini", "output_format": "jpeg"}


class TimedState:
    """A task's state, with the time that each call takes."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self.gets: list[float] = []
        self.sets: list[float] = []

    def get(self, key: str) -> Any:
        """Read."""
        began = time.perf_counter()
        try:
            return self._state.get(key)
        finally:
            self.gets.append(time.perf_counter() - began)

    def set(self, key: str, value: Any) -> None:
        """Write."""
        began = time.perf_counter()
        try:
            self._state.set(key, value)
        finally:
            self.sets.append(time.perf_counter() - began)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


class MeasuredBatch(GenerateImagesToS3Operator):
    """The operator, returning what its ``execute`` took, including imports."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Generate and save all images."""
        timed: list[TimedState] = []
        module: Any = task_state
        state_of = module.task_state

        def timed_state(*given: Any) -> Any:
            timed.append(TimedState(state_of(*given)))
            return timed[-1]

        module.task_state = timed_state
        with Measurement() as measurement:
            super().execute(context)
        return {"usage": asdict(measurement.usage), "gets": timed[0].gets, "sets": timed[0].sets}


with DAG(dag_id="benchmark_mapped", schedule=None, start_date=START, default_args=TRIES):

    @task
    def write_prompts(dag_run: Any = None) -> list[str]:
        """Return a prompt for each image."""
        return [f"a benchmark, {number}" for number in range(dag_run.conf["images"])]

    @task_group
    def make(prompt: str) -> None:
        """Make an image, and save it."""
        generated = GenerateImageOperator(task_id="generate", prompt=prompt, **REQUEST)
        TransferToS3Operator(
            task_id="save",
            generation=generated.output,
            s3_bucket="{{ dag_run.conf['bucket'] }}",
            s3_key="images/{generation_id}.{extension}",
        )

    make.expand(prompt=write_prompts())


with DAG(dag_id="benchmark_batch", schedule=None, start_date=START, default_args=TRIES):
    MeasuredBatch(
        task_id="generate_all",
        requests="{{ dag_run.conf['requests'] }}",
        defaults=REQUEST,
        s3_bucket="{{ dag_run.conf['bucket'] }}",
        s3_key="images/{row:05}.{extension}",
        manifest_key="manifest.jsonl",
        concurrency="{{ dag_run.conf['concurrency'] }}",
        getimg_conn_id="{{ dag_run.conf.get('conn', 'getimg_default') }}",
    )
