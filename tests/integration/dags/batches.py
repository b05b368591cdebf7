# SPDX-License-Identifier: Apache-2.0
"""DAGs that the tests of batches run: the rows, and when a process dies, are in the run's conf."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, AssetAlias, task
from line_count import LineCount

from airflow_provider_getimg.durable import task_state
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator

START = datetime(2026, 1, 1)
QUICK = timedelta(seconds=1)


class CountedState:
    """
    The state of a task, which writes down what each try writes.

    :param state: The state itself.
    :param witness: Gets the counts after each write.
    """

    def __init__(self, state: Any, witness: Path) -> None:
        self._state = state
        self._witness = witness
        self._writes: Counter[str] = Counter()
        self._most_bytes: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def set(self, key: str, value: Any) -> None:
        self._state.set(key, value)
        self._writes[key] += 1
        self._most_bytes[key] = max(self._most_bytes[key], len(json.dumps(value)))
        self._witness.write_text(json.dumps({"writes": self._writes, "most_bytes": self._most_bytes}))


class WatchedGenerateImagesToS3Operator(GenerateImagesToS3Operator):
    """
    A batch whose tries die when the run's conf says, and whose writes to its state are counted if it says so.

    The process of the n-th try that comes so far ends at ``moments[n - 1]``, see :class:`LineCount`; its witness is
    ``<witness>/<n>``.
    """

    template_fields = (*GenerateImagesToS3Operator.template_fields, "moments", "witness")

    def __init__(self, *, moments: Any = (), witness: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moments = moments
        self.witness = witness

    def execute(self, context: Any) -> Any:
        if self.witness:
            folder = Path(self.witness)
            state_of = task_state.task_state
            task_state.task_state = lambda *given: CountedState(state_of(*given), folder / "writes.json")
            # Not the try's number: on a busy machine, Airflow may lose a try before it begins.
            before = len(list(folder.glob("[0-9]*")))
            if before < len(self.moments):
                LineCount(self.moments[before], folder / str(before + 1)).start()
        return super().execute(context)


PARAMS: dict[str, Any] = {
    "requests": [],
    "key": "batches/{row:04}.{extension}",
    "model": "seedream-5-lite",
    "concurrency": 8,
    "max_cost": None,
    "max_failures": 0,
    "on_unknown_outcome": "fail",
    "if_exists": "skip",
    "conn": "getimg_default",
    "aws_conn": "aws_default",
    "moments": [],
    "witness": "",
}
FIELDS: dict[str, Any] = {
    "s3_bucket": "{{ var.value.getimg_bucket }}",
    "s3_key": "{{ params.key }}",
    "defaults": {"model": "{{ params.model }}"},
    "concurrency": "{{ params.concurrency }}",
    "max_cost": "{{ params.max_cost }}",
    "max_failures": "{{ params.max_failures }}",
    "on_unknown_outcome": "{{ params.on_unknown_outcome }}",
    "if_exists": "{{ params.if_exists }}",
    "getimg_conn_id": "{{ params.conn }}",
    "aws_conn_id": "{{ params.aws_conn }}",
    "retries": 6,
    "retry_delay": QUICK,
}

# Native: a list in the run's conf stays one.
with DAG("batch", schedule=None, start_date=START, params=PARAMS, render_template_as_native_obj=True):
    WatchedGenerateImagesToS3Operator(
        task_id="generate",
        requests="{{ params.requests }}",
        moments="{{ params.moments }}",
        witness="{{ params.witness }}",
        **FIELDS,
    )


def write_bill(context: Any) -> None:
    """Record what a callback learns about a failure without parsing its message."""
    error = context["exception"]
    bill = {"billed": error.billed, "cost": str(error.cost), "generation_ids": error.generation_ids}
    Path(context["params"]["witness"]).write_text(json.dumps(bill))


with DAG(
    "batch_reported", schedule=None, start_date=START, params=PARAMS, render_template_as_native_obj=True
):

    @task(trigger_rule="all_done")
    def report(ti: Any = None) -> Any:
        return ti.xcom_pull(task_ids="generate")

    (
        GenerateImagesToS3Operator(
            task_id="generate",
            requests="{{ params.requests }}",
            on_failure_callback=write_bill,
            **FIELDS,
        )
        >> report()
    )

# A night with many deploys.
with DAG(
    "batch_deployed", schedule=None, start_date=START, params=PARAMS, render_template_as_native_obj=True
):
    GenerateImagesToS3Operator(
        task_id="generate", requests="{{ params.requests }}", **FIELDS | {"retries": 30}
    )

with DAG(
    "batch_timed_out", schedule=None, start_date=START, params=PARAMS, render_template_as_native_obj=True
):
    GenerateImagesToS3Operator(
        task_id="generate",
        requests="{{ params.requests }}",
        execution_timeout=timedelta(seconds=6),
        **FIELDS | {"retries": 8},
    )

with DAG(
    "batch_upstream", schedule=None, start_date=START, params=PARAMS, render_template_as_native_obj=True
):

    @task
    def rows(params: dict | None = None) -> list[dict[str, Any]]:
        return (params or {})["requests"]

    GenerateImagesToS3Operator(
        task_id="generate", requests=rows(), outlets=[AssetAlias("images_of_a_batch")], **FIELDS
    )

with DAG(
    "batch_upstream_mapped",
    schedule=None,
    start_date=START,
    params=PARAMS,
    render_template_as_native_obj=True,
):

    @task
    def prompts(params: dict | None = None) -> list[str]:
        return [request["prompt"] for request in (params or {})["requests"]]

    @task
    def row(prompt: str) -> dict[str, Any]:
        return {"prompt": prompt}

    GenerateImagesToS3Operator(task_id="generate", requests=row.expand(prompt=prompts()), **FIELDS)

with DAG("batch_mapped", schedule=None, start_date=START, params=PARAMS, render_template_as_native_obj=True):

    @task
    def chunks(params: dict | None = None) -> list[list[dict[str, Any]]]:
        return (params or {})["requests"]

    # The test makes the pool, with a single slot.
    GenerateImagesToS3Operator.partial(task_id="generate", pool="one_batch", **FIELDS).expand(
        requests=chunks()
    )
