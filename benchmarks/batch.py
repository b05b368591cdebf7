# SPDX-License-Identifier: Apache-2.0
"""Speed, memory and CPU of one task that makes many images, compared with a thread pool and with one task per image."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks import batch_chart
from benchmarks.batch_in_airflow import Comparison, compare
from benchmarks.report import Options, Report, Target
from benchmarks.workload import MIB, Workload, verified

if TYPE_CHECKING:
    from benchmarks.process import Usage
    from benchmarks.testbed import Testbed

OURS, THREADS = "operator", "threads"
IDEAL_FACTOR = 1.05
LIMIT_BYTES = 150 * MIB
SPREAD_BYTES = 32 * MIB
CPU_FACTOR = 40.0
#: CPU-seconds of a mapped pair above a pair that does nothing.
PAIR_CPU_SECONDS = 0.3
#: Wall time and CPU per image, compared with plain threads.
THREADS_TIME_FACTOR, THREADS_CPU_FACTOR = 1.01, 1.5


@dataclass(frozen=True)
class Size:
    """The workloads.

    :param speed: For one process, and for one Airflow task.
    :param memory: For one process, which should use the same memory for each.
    :param mapped: For a pair of tasks per image.
    :param warm_up: For both, before Airflow is measured.
    :param idle_seconds: How long an idle Airflow is watched, before and after.
    """

    speed: Workload
    memory: tuple[Workload, ...]
    mapped: Workload
    warm_up: Workload
    idle_seconds: float


FULL = Size(
    speed=Workload(320, 2.0, 32),
    memory=(Workload(320, 0.2, 32), Workload(3200, 0.2, 32)),
    mapped=Workload(64, 2.0, 1),
    warm_up=Workload(4, 0.2, 4),
    idle_seconds=12.0,
)
QUICK = Size(
    speed=Workload(16, 0.5, 8),
    memory=(Workload(16, 0.1, 8), Workload(64, 0.1, 8)),
    mapped=Workload(2, 0.5, 1),
    warm_up=Workload(1, 0.1, 1),
    idle_seconds=3.0,
)


def run(testbed: Testbed, options: Options) -> Report:
    """Measure Airflow first: the processes' store is made as slow as Airflow's task state store."""
    size = QUICK if options.quick else FULL
    airflow = compare(
        testbed,
        size.mapped,
        size.speed,
        warm_up=size.warm_up,
        idle_seconds=size.idle_seconds,
        progress=options.progress,
    )
    speeds: dict[str, list[Usage]] = {THREADS: [], OURS: []}
    for _ in range(options.repetitions or 1):
        for by, usages in speeds.items():
            usages.append(_in_process(by, testbed, size.speed, airflow))
            ratio = usages[-1].seconds / size.speed.ideal_seconds
            options.progress(f"batch: {by}: {usages[-1].seconds:.2f} s, {ratio:.3f} of the ideal")
    memories = []
    for workload in size.memory:
        memories.append(_in_process(OURS, testbed, workload, airflow))
        options.progress(f"batch: {workload.images} images: {memories[-1].extra_bytes / MIB:.1f} MiB")
    medians = {by: statistics.median(usage.seconds for usage in usages) for by, usages in speeds.items()}
    cpu = {by: statistics.median(usage.cpu_seconds for usage in usages) for by, usages in speeds.items()}
    runs = [
        *(
            {"part": "wall time", "by": by} | asdict(size.speed) | asdict(usage)
            for by, usages in speeds.items()
            for usage in usages
        ),
        *(
            {"part": "memory", "by": OURS} | asdict(workload) | asdict(usage)
            for workload, usage in zip(size.memory, memories, strict=True)
        ),
        {"part": "Airflow", "by": "mapped pair"} | asdict(airflow.mapped),
        {"part": "Airflow", "by": "pair that does nothing"} | asdict(airflow.nothing),
        {"part": "Airflow", "by": "pair with Amazon's operator"} | asdict(airflow.amazon),
        {"part": "Airflow", "by": "batch"} | asdict(airflow.batch) | {"task": asdict(airflow.task)},
        {"part": "Airflow", "by": "batch, state in S3", "task": asdict(airflow.task_in_s3)},
    ]
    return Report(
        name="batch",
        title=(
            f"{size.speed.images} images of 1 MiB, {size.speed.concurrency} at once, "
            f"{size.speed.latency:g} s each at the API, made and saved to S3"
        ),
        parameters=asdict(size)
        | {
            "airflow": "LocalExecutor, parallelism 4, SQLite",
            "idle_cpu_rates": airflow.idle_rates,
            "store": "in the processes: sleeps for the medians of the batch in Airflow",
            "store_set_seconds": airflow.task.set_seconds,
            "store_get_seconds": airflow.task.get_seconds,
        },
        runs=runs,
        summary=[_summary(size, medians, memories, airflow)],
        targets=_targets(size, medians, cpu, memories, airflow),
        tables=[_speed_table(size, speeds, airflow), _memory_table(size, memories), _airflow_table(airflow)],
        draw=lambda figure: batch_chart.draw(
            figure,
            batch_chart.Figures(
                seconds={
                    "the API\nalone": size.speed.ideal_seconds,
                    "batch": medians[OURS],
                    "batch,\nin Airflow": airflow.task.usage.seconds,
                    f"{size.speed.concurrency} threads": medians[THREADS],
                },
                memory={
                    f"{workload.images}\nimages": usage.extra_bytes / MIB
                    for workload, usage in zip(size.memory, memories, strict=True)
                },
                memory_limit=LIMIT_BYTES / MIB,
                rates={"batch task": airflow.batch.rate, "mapped pairs": airflow.mapped.rate},
                cpu={"batch task": airflow.batch.cpu_per_image, "mapped pairs": airflow.mapped.cpu_per_image},
            ),
        ),
    )


def _in_process(by: str, testbed: Testbed, workload: Workload, airflow: Comparison) -> Usage:
    with verified(testbed, workload) as bucket:
        return testbed.run_worker(
            "benchmarks.batch_worker",
            by=by,
            images=workload.images,
            concurrency=workload.concurrency,
            bucket=bucket,
            url=testbed.simulator.url,
            api_key=testbed.simulator.api_key,
            set_seconds=airflow.task.set_seconds,
            get_seconds=airflow.task.get_seconds,
        )


def _cpu_factor(airflow: Comparison) -> float:
    return airflow.mapped.cpu_per_image / airflow.batch.cpu_per_image


def _summary(
    size: Size, medians: dict[str, float], memories: list[Usage], airflow: Comparison
) -> dict[str, Any]:
    ideal = size.speed.ideal_seconds
    return {
        "seconds_to_ideal": medians[OURS] / ideal,
        "seconds_to_ideal_in_airflow": airflow.task.usage.seconds / ideal,
        "seconds_to_ideal_in_airflow_with_state_in_s3": airflow.task_in_s3.usage.seconds / ideal,
        "set_seconds": {"task state store": airflow.task.set_seconds, "S3": airflow.task_in_s3.set_seconds},
        "seconds_to_ideal_of_threads": medians[THREADS] / ideal,
        "extra_bytes": {
            workload.images: usage.extra_bytes for workload, usage in zip(size.memory, memories, strict=True)
        },
        "images_per_second": {"batch": airflow.batch.rate, "mapped": airflow.mapped.rate},
        "cpu_seconds_per_image": {
            "batch": airflow.batch.cpu_per_image,
            "mapped": airflow.mapped.cpu_per_image,
            "nothing": airflow.nothing.cpu_per_image,
            "amazon": airflow.amazon.cpu_per_image,
        },
        "cpu_factor": _cpu_factor(airflow),
    }


def _targets(
    size: Size,
    medians: dict[str, float],
    cpu: dict[str, float],
    memories: list[Usage],
    airflow: Comparison,
) -> list[Target]:
    ideal = size.speed.ideal_seconds
    threads, threads_cpu = medians[THREADS], cpu[THREADS] / size.speed.images
    extra = [usage.extra_bytes for usage in memories]
    measured = ", ".join(
        f"{workload.images}: {at / MIB:.1f} MiB" for workload, at in zip(size.memory, extra, strict=True)
    )
    return [
        Target(
            f"wall time: at most {IDEAL_FACTOR:g} of the ideal {ideal:g} s",
            f"{medians[OURS]:.2f} s: {medians[OURS] / ideal:.3f}",
            medians[OURS] <= IDEAL_FACTOR * ideal,
        ),
        Target(
            f"wall time: at most {THREADS_TIME_FACTOR:g} of plain threads",
            f"{medians[OURS]:.2f} against {threads:.2f} s: {medians[OURS] / threads:.3f}",
            medians[OURS] <= THREADS_TIME_FACTOR * threads,
        ),
        Target(
            f"CPU per image: at most {THREADS_CPU_FACTOR:g} times that of plain threads",
            f"{cpu[OURS] / size.speed.images * 1000:.1f} against {threads_cpu * 1000:.1f} ms: "
            f"{cpu[OURS] / cpu[THREADS]:.2f} times",
            cpu[OURS] <= THREADS_CPU_FACTOR * cpu[THREADS],
        ),
        Target(
            f"memory: under {LIMIT_BYTES // MIB} MiB above an idle worker", measured, max(extra) < LIMIT_BYTES
        ),
        Target(
            f"memory: the same for all counts, within {SPREAD_BYTES // MIB} MiB",
            f"a spread of {(max(extra) - min(extra)) / MIB:.1f} MiB",
            max(extra) - min(extra) < SPREAD_BYTES,
        ),
        Target(
            f"CPU per image in Airflow: {CPU_FACTOR:g} times better than mapped tasks, at least",
            f"{airflow.batch.cpu_per_image * 1000:.1f} against {airflow.mapped.cpu_per_image * 1000:.0f} ms: "
            f"{_cpu_factor(airflow):.1f} times",
            _cpu_factor(airflow) >= CPU_FACTOR,
        ),
        Target(
            f"CPU of a mapped pair: at most {PAIR_CPU_SECONDS:g} s above a pair that does nothing",
            f"{airflow.mapped.cpu_per_image:.2f} against {airflow.nothing.cpu_per_image:.2f} s; with Amazon's own operator "
            f"{airflow.amazon.cpu_per_image:.2f} s",
            airflow.mapped.cpu_per_image <= airflow.nothing.cpu_per_image + PAIR_CPU_SECONDS,
        ),
    ]


def _speed_table(size: Size, speeds: dict[str, list[Usage]], airflow: Comparison) -> Table:
    workload = size.speed
    table = Table(
        title=f"{workload.images} images, {workload.concurrency} at once, {workload.latency:g} s each: "
        f"{workload.ideal_seconds:g} s at best"
    )
    for name in ("by", "seconds", "of the ideal", "CPU of the process, ms an image"):
        table.add_column(name, justify="left" if name == "by" else "right")
    names = {
        OURS: f"batch, state store of {airflow.task.set_seconds * 1000:.0f} ms a write",
        THREADS: f"{workload.concurrency} plain threads, without a state store",
    }
    rows = [(names[by], usage) for by in (OURS, THREADS) for usage in speeds[by]]
    for where, task in {"task state store": airflow.task, "folder in S3": airflow.task_in_s3}.items():
        name = f"batch in Airflow, with its imports, {where} of {task.set_seconds * 1000:.0f} ms a write"
        rows.append((name, task.usage))
    for name, usage in rows:
        table.add_row(
            name,
            f"{usage.seconds:.2f}",
            f"{usage.seconds / workload.ideal_seconds:.3f}",
            f"{usage.cpu_seconds / workload.images * 1000:.1f}",
        )
    return table


def _memory_table(size: Size, memories: list[Usage]) -> Table:
    table = Table(title="Memory of the batch above the idle process")
    for name in ("images", "seconds", "MiB"):
        table.add_column(name, justify="right")
    for workload, usage in zip(size.memory, memories, strict=True):
        table.add_row(str(workload.images), f"{usage.seconds:.1f}", f"{usage.extra_bytes / MIB:.1f}")
    return table


def _airflow_table(airflow: Comparison) -> Table:
    rates = " and ".join(f"{rate:.2f}" for rate in airflow.idle_rates)
    table = Table(title=f"In one Airflow; its own idle {rates} CPU-s a second are subtracted")
    for name in ("by", "images", "seconds", "images/s", "CPU-s an image"):
        table.add_column(name, justify="left" if name == "by" else "right")
    names = {
        "two mapped tasks for each image": airflow.mapped,
        "two mapped tasks that do nothing": airflow.nothing,
        "one that does nothing, and Amazon's S3CreateObjectOperator": airflow.amazon,
        "one batch task": airflow.batch,
    }
    for name, usage in names.items():
        table.add_row(
            name,
            str(usage.images),
            f"{usage.seconds:.1f}",
            f"{usage.rate:.2f}",
            f"{usage.cpu_per_image:.4f}",
        )
    return table
