# SPDX-License-Identifier: Apache-2.0
"""Time and CPU that a real Airflow needs for a batch, and for the same work as a pair of tasks per image."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.process import Usage
from benchmarks.process_tree import cpu_seconds
from benchmarks.workload import Workload, requests_lines, verified
from devstack import Airflow, StackError
from devstack.rest import FINAL_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.testbed import Testbed

REPOSITORY = Path(__file__).parents[1]
DAGS = Path(__file__).with_name("batch_dags")
MAPPED, BATCH = "benchmark_mapped", "benchmark_batch"
#: Pairs of tasks without this provider.
NOTHING, AMAZON = "benchmark_nothing", "benchmark_amazon"
CONN_IN_S3 = "getimg_in_s3"
LIMIT_SECONDS = 600.0
POLL_SECONDS = 1.0
# For work that continues after a run: the last tasks' processes exit, and their logs are written.
SETTLE_SECONDS = 3.0


@dataclass(frozen=True)
class AirflowUsage:
    """The resources that a run used.

    :param seconds: From the run's start to its end, as Airflow records them.
    :param cpu_seconds: Of all Airflow processes, above what they use when idle.
    :param idle_cpu_seconds: What the processes use when idle, already subtracted.
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
    """The resources that the batch's ``execute`` used inside its task, including its imports.

    :param set_seconds: The median time of a write to the task's state, while the batch ran.
    :param get_seconds: The same for a read.
    """

    usage: Usage
    sets: int
    set_seconds: float
    get_seconds: float


@dataclass(frozen=True)
class Comparison:
    """Both ways, in one Airflow.

    :param nothing: Mapped pairs of tasks that do nothing.
    :param amazon: Mapped pairs of a task that does nothing and one that writes an object with the Amazon provider's operator.
    :param task: The batch, with its state in the task state store.
    :param task_in_s3: The same with its state in a folder in S3.
    :param idle_rates: CPU-seconds per second when idle, before and after.
    """

    mapped: AirflowUsage
    nothing: AirflowUsage
    amazon: AirflowUsage
    batch: AirflowUsage
    task: BatchTask
    task_in_s3: BatchTask
    idle_rates: tuple[float, float]


def compare(
    testbed: Testbed,
    mapped: Workload,
    batch: Workload,
    *,
    warm_up: Workload,
    idle_seconds: float,
    progress: Callable[[str], None],
) -> Comparison:
    """Measure mapped pairs of tasks and a batch, one after the other.

    :param warm_up: Images to make first, both ways: the first task of a fresh Airflow is slower than later ones.
    :raises devstack.StackError: A run failed, or did not make the expected images.
    """
    env = {
        name: value
        for name, value in testbed.environment().items()
        if name.startswith(("AIRFLOW_CONN", "AWS_"))
    }
    folder = f"s3://{testbed.s3.create_bucket('benchmark-state')}/state"
    env |= {
        f"AIRFLOW_CONN_{CONN_IN_S3.upper()}": testbed.simulator.process.connection(state_folder=folder),
        "PYTHONPATH": str(REPOSITORY),
        # Parse once: a later parse would count against one of the two.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
    }
    progress("batch: starting Airflow")
    with Airflow(testbed.folder / "batch-airflow", [DAGS], env=env) as airflow:
        runner = _Runner(airflow, testbed)
        for dag_id in (MAPPED, NOTHING, AMAZON, BATCH):
            airflow.wait_for_dag(dag_id)
            airflow.unpause(dag_id)
            runner.run(dag_id, warm_up)
        before = runner.idle_rate(idle_seconds)
        progress(f"batch: Airflow is idle at {before:.2f} CPU-seconds a second")
        found: dict[str, tuple[float, float, float]] = {}
        for dag_id, workload in {MAPPED: mapped, NOTHING: mapped, AMAZON: mapped, BATCH: batch}.items():
            found[dag_id] = runner.run(dag_id, workload)
            progress(f"batch: {dag_id}: {workload.images} images in {found[dag_id][0]:.1f} s")
        task = runner.batch_task()
        runner.run(BATCH, batch, conn=CONN_IN_S3)
        task_in_s3 = runner.batch_task()
        after = runner.idle_rate(idle_seconds)
    rate = (before + after) / 2

    def usage(dag_id: str, workload: Workload) -> AirflowUsage:
        seconds, cpu, watched = found[dag_id]
        idle = rate * watched
        return AirflowUsage(workload.images, seconds, cpu - idle, idle)

    return Comparison(
        mapped=usage(MAPPED, mapped),
        nothing=usage(NOTHING, mapped),
        amazon=usage(AMAZON, mapped),
        batch=usage(BATCH, batch),
        task=task,
        task_in_s3=task_in_s3,
        idle_rates=(before, after),
    )


class _Runner:
    """Runs DAGs in one Airflow, and measures them."""

    def __init__(self, airflow: Airflow, testbed: Testbed) -> None:
        assert airflow.process is not None
        self._airflow = airflow
        self._testbed = testbed
        self._root = airflow.process.pid
        self._last = ("", "")

    def run(self, dag_id: str, workload: Workload, **given: str) -> tuple[float, float, float]:
        """Run a DAG with this conf; return the run's seconds, Airflow's CPU-seconds, and the seconds over which it used them."""
        makes_images = dag_id in (MAPPED, BATCH)
        with verified(self._testbed, workload) if makes_images else self._testbed.bucket() as bucket:
            conf: dict[str, Any] = given | {
                "bucket": bucket,
                "images": workload.images,
                "concurrency": workload.concurrency,
            }
            if dag_id == BATCH:
                self._testbed.client.put_object(
                    Bucket=bucket, Key="requests.jsonl", Body=requests_lines(workload.images)
                )
                conf["requests"] = f"s3://{bucket}/requests.jsonl"
            with self._watched() as watched:
                run_id = self._airflow.trigger(dag_id, conf=conf)
                self._last = dag_id, run_id
                self._wait_for_end()
                time.sleep(SETTLE_SECONDS)
        run = self._state()
        seconds = datetime.fromisoformat(run["end_date"]) - datetime.fromisoformat(run["start_date"])
        return seconds.total_seconds(), watched[0], watched[1]

    def idle_rate(self, seconds: float) -> float:
        """Return the CPU-seconds per second of an Airflow that only responds to this process."""
        with self._watched() as watched:
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                self._state()
                time.sleep(POLL_SECONDS)
        return watched[0] / watched[1]

    def batch_task(self) -> BatchTask:
        """Return the measurements of the last batch's task."""
        result = self._airflow.xcom(*self._last, "generate_all")
        return BatchTask(
            Usage(**result["usage"]),
            len(result["sets"]),
            statistics.median(result["sets"]),
            statistics.median(result["gets"]),
        )

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[float]]:
        """Yield a list that will hold the CPU-seconds and the seconds that the block took."""
        used: list[float] = []
        cpu, began = cpu_seconds(self._root), time.monotonic()
        yield used
        used += [cpu_seconds(self._root) - cpu, time.monotonic() - began]

    def _state(self) -> dict[str, Any]:
        dag_id, run_id = self._last
        run: dict[str, Any] = self._airflow.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
        return run

    def _wait_for_end(self) -> None:
        # Not AirflowRest.wait(): each request costs the API server CPU time, so the rate must be the same as when idle.
        ends = time.monotonic() + LIMIT_SECONDS
        while (state := self._state()["state"]) not in FINAL_STATES:
            if time.monotonic() > ends:
                raise StackError(f"{self._last[0]} did not end in {LIMIT_SECONDS:g} s.")
            time.sleep(POLL_SECONDS)
        if state != "success":
            raise StackError(f"{self._last[0]} failed.", self._airflow.failed_log(*self._last))
