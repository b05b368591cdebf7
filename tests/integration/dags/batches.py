# SPDX-License-Identifier: Apache-2.0
"""DAGs that the tests of batches run: the rows, and when a process dies, are in the run's conf."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, AssetAlias, task

from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator

if TYPE_CHECKING:
    from types import FrameType

START = datetime(2026, 1, 1)
QUICK = timedelta(seconds=1)
COUNTED = ("airflow_provider_getimg/", "execution_time/task_runner.py")
NOT_COUNTED = ("/simulator/", "/testing/", "/tests/")


class LineCount:
    """
    Counts the lines that a batch, and Airflow's task runner after it, execute in all threads.

    :param moment: The process ends with SIGKILL right before its ``moment``-th line, or before a line at a place that
        starts with the text ``moment``, such as ``journal.py:_commit:``, for the first time, or, with ``#7`` at its end, for
        the seventh. 0: never.
    :param witness: Gets the place of death, or of each line where ``moment`` is 0.
    """

    def __init__(self, moment: int | str, witness: Path) -> None:
        place, _, times = str(moment).partition("#")
        self._line = int(place) if place.isdecimal() else -1
        self._place = place
        self._times = int(times or 1)
        self._lines = 0
        self._lock = threading.Lock()
        self._places = witness.open("a", buffering=1)
        self._known: dict[str, bool] = {}

    def start(self) -> None:
        threading.settrace(self._on_call)
        sys.settrace(self._on_call)
        # The task runner's frames are older than the trace function: those that are active are asked too.
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if self._counts(frame.f_code.co_filename):
                frame.f_trace = self._on_line
            frame = frame.f_back

    def _counts(self, file: str) -> bool:
        if file not in self._known:
            ours = any(part in file for part in COUNTED)
            self._known[file] = ours and not any(part in file for part in NOT_COUNTED)
        return self._known[file]

    def _on_call(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._on_line if self._counts(frame.f_code.co_filename) else None

    def _on_line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            code = frame.f_code
            place = f"{Path(code.co_filename).name}:{code.co_name}:{frame.f_lineno}"
            with self._lock:
                self._lines += 1
                if self._line < 0 and place.startswith(self._place):
                    self._times -= 1
                dies = self._lines == self._line or not self._times
                if dies or not self._line:
                    self._places.write(f"{place}\n")
                if dies:
                    os.kill(os.getpid(), signal.SIGKILL)
        return self._on_line


class CountedStore:
    """
    The task state store, which writes down what each try asks of it.

    :param store: The store itself.
    :param witness: Gets the counts after each write.
    """

    def __init__(self, store: Any, witness: Path) -> None:
        self._store = store
        self._witness = witness
        self._writes: Counter[str] = Counter()
        self._most_bytes: Counter[str] = Counter()

    def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        return self._store.get(key, *args, **kwargs)

    def set(self, key: str, value: Any, **kwargs: Any) -> None:
        self._store.set(key, value, **kwargs)
        self._writes[key] += 1
        self._most_bytes[key] = max(self._most_bytes[key], len(json.dumps(value)))
        self._witness.write_text(json.dumps({"writes": self._writes, "most_bytes": self._most_bytes}))

    def delete(self, key: str) -> None:
        self._store.delete(key)


class WatchedGenerateImagesToS3Operator(GenerateImagesToS3Operator):
    """
    A batch whose tries die when the run's conf says, and whose writes to the task state store are counted if it says so.

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
            store = CountedStore(context["task_state_store"], folder / "writes.json")
            context["task_state_store"] = store
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
