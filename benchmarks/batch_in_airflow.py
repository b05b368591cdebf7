# SPDX-License-Identifier: Apache-2.0
"""A batch, and the same kind of work as a pair of tasks for each image, in a real Airflow: time, and CPU of all of it."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.batch_work import Work, requests_lines, working
from benchmarks.process import Usage
from benchmarks.process_tree import cpu_seconds
from devstack import Airflow, StackError
from devstack.rest import FINAL_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.stage import Stage

REPOSITORY = Path(__file__).parents[1]
DAGS = Path(__file__).with_name("batch_dags")
MAPPED, BATCH = "benchmark_mapped", "benchmark_batch"
LIMIT_SECONDS = 600.0
POLL_SECONDS = 1.0
# What a run leaves behind to be done: the last tasks' processes end, their logs are written.
SETTLE_SECONDS = 3.0


@dataclass(frozen=True)
class AirflowUsage:
    """What a run took.

    :param seconds: From the run's start to its end, as Airflow notes them.
    :param cpu_seconds: Of all processes of Airflow, above what it uses when nothing runs.
    :param idle_cpu_seconds: What was subtracted for that.
    """

    images: int
    seconds: float
    cpu_seconds: float
    idle_cpu_seconds: float

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def cpu_per_image(self) -> float:
        """CPU-seconds per image."""
        return self.cpu_seconds / self.images


@dataclass(frozen=True)
class BatchTask:
    """What the batch's ``execute`` took inside its task, with its imports.

    :param set_seconds: The median of a write to the task state store, while the batch ran.
    :param get_seconds: The same of a read.
    """

    usage: Usage
    sets: int
    set_seconds: float
    get_seconds: float


@dataclass(frozen=True)
class SideBySide:
    """Both ways, in one Airflow.

    :param idle_rates: CPU-seconds per second when nothing runs, before and after.
    """

    mapped: AirflowUsage
    batch: AirflowUsage
    task: BatchTask
    idle_rates: tuple[float, float]


def side_by_side(
    stage: Stage, mapped: Work, batch: Work, *, warm_up: Work, idle_seconds: float, say: Callable[[str], None]
) -> SideBySide:
    """Measure a mapped pair of tasks and a batch, one after the other.

    :param warm_up: What is made before, in both ways: the first task of a fresh Airflow is slower than all later ones.
    :raises devstack.StackError: A run failed, or did not make what it should.
    """
    env = {
        name: value
        for name, value in stage.environment().items()
        if name.startswith(("AIRFLOW_CONN", "AWS_"))
    }
    env |= {
        "PYTHONPATH": str(REPOSITORY),
        # Read once: a parse now and then would be on one side's bill.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
    }
    say("batch: starting Airflow")
    with Airflow(stage.folder / "batch-airflow", [DAGS], env=env) as airflow:
        runs = _Runs(airflow, stage)
        for dag_id in (MAPPED, BATCH):
            airflow.wait_for_dag(dag_id)
            airflow.unpause(dag_id)
            runs.make(dag_id, warm_up)
        before = runs.idle_rate(idle_seconds)
        say(f"batch: Airflow is idle at {before:.2f} CPU-seconds a second")
        found: dict[str, tuple[float, float, float]] = {}
        for dag_id, work in ((MAPPED, mapped), (BATCH, batch)):
            found[dag_id] = runs.make(dag_id, work)
            say(f"batch: {dag_id}: {work.images} images in {found[dag_id][0]:.1f} s")
        task = runs.batch_task()
        after = runs.idle_rate(idle_seconds)
    rate = (before + after) / 2

    def usage(dag_id: str, work: Work) -> AirflowUsage:
        seconds, cpu, watched = found[dag_id]
        idle = rate * watched
        return AirflowUsage(work.images, seconds, cpu - idle, idle)

    return SideBySide(usage(MAPPED, mapped), usage(BATCH, batch), task, (before, after))


class _Runs:
    """Runs in one Airflow."""

    def __init__(self, airflow: Airflow, stage: Stage) -> None:
        assert airflow.process is not None
        self._airflow = airflow
        self._stage = stage
        self._root = airflow.process.pid
        self._last = ("", "")

    def make(self, dag_id: str, work: Work) -> tuple[float, float, float]:
        """Run a DAG; return the run's seconds, Airflow's CPU-seconds, and the seconds in which these were used."""
        with working(self._stage, work) as bucket:
            conf: dict[str, Any] = {"bucket": bucket, "images": work.images, "concurrency": work.concurrency}
            if dag_id == BATCH:
                self._stage.client.put_object(
                    Bucket=bucket, Key="requests.jsonl", Body=requests_lines(work.images)
                )
                conf["requests"] = f"s3://{bucket}/requests.jsonl"
            with self._watched() as watched:
                run_id = self._airflow.trigger(dag_id, conf=conf)
                self._last = dag_id, run_id
                self._wait_for_end()
                time.sleep(SETTLE_SECONDS)
        run = self._run()
        seconds = datetime.fromisoformat(run["end_date"]) - datetime.fromisoformat(run["start_date"])
        return seconds.total_seconds(), watched[0], watched[1]

    def idle_rate(self, seconds: float) -> float:
        """Return the CPU-seconds a second of an Airflow that has nothing to do but to answer us."""
        with self._watched() as watched:
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                self._run()
                time.sleep(POLL_SECONDS)
        return watched[0] / watched[1]

    def batch_task(self) -> BatchTask:
        """Return what the last batch's task told of itself."""
        told = self._airflow.xcom(*self._last, "generate_all")
        return BatchTask(
            Usage(**told["usage"]),
            len(told["sets"]),
            statistics.median(told["sets"]),
            statistics.median(told["gets"]),
        )

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[float]]:
        """Fill a list with the CPU-seconds and the seconds that the block took."""
        used: list[float] = []
        cpu, began = cpu_seconds(self._root), time.monotonic()
        yield used
        used += [cpu_seconds(self._root) - cpu, time.monotonic() - began]

    def _run(self) -> dict[str, Any]:
        dag_id, run_id = self._last
        run: dict[str, Any] = self._airflow.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
        return run

    def _wait_for_end(self) -> None:
        # Not Airflow's own wait(): each question costs the API server CPU time, and while it is idle it is asked as often.
        ends = time.monotonic() + LIMIT_SECONDS
        while (state := self._run()["state"]) not in FINAL_STATES:
            if time.monotonic() > ends:
                raise StackError(f"{self._last[0]} did not end in {LIMIT_SECONDS:g} s.")
            time.sleep(POLL_SECONDS)
        if state != "success":
            raise StackError(f"{self._last[0]} failed.", self._airflow.failed_log(*self._last))
