# SPDX-License-Identifier: Apache-2.0
"""One task for all images. A run's conf holds ``bucket``, ``requests``, ``concurrency`` and optionally ``conn``."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG

from airflow_provider_getimg.durable import task_state
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from benchmarks.dag_parts import REQUEST, SETTINGS
from benchmarks.process import Measurement

if TYPE_CHECKING:
    from airflow.sdk import Context


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


with DAG(dag_id="benchmark_batch", schedule=None, **SETTINGS):
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
