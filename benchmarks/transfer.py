# SPDX-License-Identifier: Apache-2.0
"""Speed and CPU of copying many files to S3, compared with rclone and the loop of ``HttpToS3Operator``."""

from __future__ import annotations

import random
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.charts import Bar, bars
from benchmarks.copiers import COPIERS, LOOP, OURS, RCLONE, RCLONE_FLAGS, copy, rclone_start
from benchmarks.report import Options, Report, Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    from benchmarks.process import Usage
    from benchmarks.testbed import Testbed

MIB, GIB = 2**20, 2**30
RCLONE_FACTOR = 1.1
LOOP_FACTOR = 5.0


@dataclass(frozen=True)
class Size:
    """How much is copied, and how."""

    files: int
    file_bytes: int
    latencies: tuple[float, ...]
    concurrencies: tuple[int, ...]
    repetitions: int


FULL = Size(100, 4 * MIB, (0.0, 0.15), (1, 4, 8), 3)
QUICK = Size(16, MIB // 2, (0.0, 0.15), (8,), 1)


@dataclass(frozen=True)
class Case:
    """One copier under one set of conditions."""

    copier: str
    latency: float
    concurrency: int


@dataclass(frozen=True)
class Throughput:
    """The median of a case's repetitions, and their extremes."""

    median: float
    lowest: float
    highest: float
    cpu_per_gib: float


def run(testbed: Testbed, options: Options) -> Report:
    """Measure every case, in a different order in each repetition."""
    size = QUICK if options.quick else FULL
    count = options.files or size.files
    repetitions = options.repetitions or size.repetitions
    cases = [
        Case(copier, latency, concurrency)
        for copier in COPIERS
        for latency in size.latencies
        # The loop always copies one file at a time.
        for concurrency in ((1,) if copier == LOOP else size.concurrencies)
    ]
    options.progress(f"transfer: making {count} files of {size.file_bytes / MIB:g} MiB")
    files = testbed.make_files(count, size.file_bytes)
    start = rclone_start(testbed)
    runs: list[tuple[Case, Usage]] = []
    order = random.Random(options.seed)
    for repetition in range(1, repetitions + 1):
        order.shuffle(cases)
        for case in cases:
            usage = copy(case.copier, testbed, files, case.concurrency, case.latency)
            runs.append((case, usage))
            options.progress(
                f"transfer {repetition}/{repetitions}: {case.copier}, {case.latency * 1000:g} ms, "
                f"concurrency {case.concurrency}: {count / usage.seconds:.1f} files/s"
            )
    gib = count * size.file_bytes / GIB
    speeds = {case: _throughput([usage for at, usage in runs if at == case], count, gib) for case in cases}
    parameters = asdict(size) | {
        "files": count,
        "repetitions": repetitions,
        "seed": options.seed,
        # Subtracted, as the others' imports are not counted either.
        "rclone_start_seconds": start.seconds,
        "rclone_flags": RCLONE_FLAGS,
    }
    return Report(
        name="transfer",
        title=f"{count} files of {size.file_bytes / MIB:g} MiB into S3 (median of {repetitions}, extremes)",
        parameters=parameters,
        runs=[
            asdict(case) | asdict(usage) | {"files_per_second": count / usage.seconds} for case, usage in runs
        ],
        summary=[asdict(case) | asdict(speed) for case, speed in speeds.items()],
        targets=_targets(size, speeds),
        tables=[_table(size, speeds)],
        draw=lambda figure: _draw(figure, size, speeds),
    )


def _throughput(usages: list[Usage], count: int, gib: float) -> Throughput:
    rates = [count / usage.seconds for usage in usages]
    return Throughput(
        median=statistics.median(rates),
        lowest=min(rates),
        highest=max(rates),
        cpu_per_gib=statistics.median(usage.cpu_seconds for usage in usages) / gib,
    )


def _conditions(size: Size) -> list[tuple[float, int]]:
    return [(latency, concurrency) for latency in size.latencies for concurrency in size.concurrencies]


def _at(speeds: dict[Case, Throughput], copier: str, latency: float, concurrency: int) -> Throughput:
    return speeds[Case(copier, latency, 1 if copier == LOOP else concurrency)]


def _targets(size: Size, speeds: dict[Case, Throughput]) -> list[Target]:
    targets = []
    for latency, concurrency in _conditions(size):
        ours, rclone = (_at(speeds, copier, latency, concurrency).median for copier in (OURS, RCLONE))
        targets.append(
            Target(
                f"rclone's speed / {RCLONE_FACTOR:g}, at least ({latency * 1000:g} ms, concurrency {concurrency})",
                f"{ours:.1f} against {rclone:.1f} files/s: {ours / rclone:.2f} of rclone's",
                ours >= rclone / RCLONE_FACTOR,
            )
        )
    latency, concurrency = size.latencies[-1], size.concurrencies[-1]
    ours, loop = (_at(speeds, copier, latency, concurrency).median for copier in (OURS, LOOP))
    targets.append(
        Target(
            f"{LOOP_FACTOR:g} times the loop, at least ({latency * 1000:g} ms, concurrency {concurrency})",
            f"{ours:.1f} against {loop:.1f} files/s: {ours / loop:.1f} times",
            ours >= LOOP_FACTOR * loop,
        )
    )
    return targets


def _table(size: Size, speeds: dict[Case, Throughput]) -> Table:
    table = Table("latency", "concurrency", title="files/s: median (extremes); CPU-s/GiB: median")
    for copier in COPIERS:
        table.add_column(f"{copier}\nfiles/s", justify="right")
        table.add_column("\nCPU-s/GiB", justify="right")
    for latency, concurrency in _conditions(size):
        row = [f"{latency * 1000:g} ms", str(concurrency)]
        for copier in COPIERS:
            at = _at(speeds, copier, latency, concurrency)
            row += [f"{at.median:.1f} ({at.lowest:.1f} to {at.highest:.1f})", f"{at.cpu_per_gib:.2f}"]
        table.add_row(*row)
    return table


def _draw(figure: FigureBase, size: Size, speeds: dict[Case, Throughput]) -> Axes:
    panels: list[Axes] = list(figure.subplots(1, len(size.latencies) + 1))
    groups = [str(concurrency) for concurrency in size.concurrencies]
    for axes, latency in zip(panels, size.latencies, strict=False):
        series = {}
        for copier in COPIERS:
            found = [_at(speeds, copier, latency, concurrency) for concurrency in size.concurrencies]
            series[copier] = [Bar(at.median, at.lowest, at.highest) for at in found]
        bars(axes, groups, series)
        axes.set_title(f"{latency * 1000:g} ms download latency")
        axes.set_xlabel("concurrency (the loop: always 1)")
        axes.set_ylabel("files per second")
    latency = size.latencies[0]
    costs = {
        copier: [Bar(_at(speeds, copier, latency, each).cpu_per_gib) for each in size.concurrencies]
        for copier in COPIERS
    }
    bars(panels[-1], groups, costs, digits=2)
    panels[-1].set_title(f"CPU of the copier, {latency * 1000:g} ms")
    panels[-1].set_xlabel("concurrency (the loop: always 1)")
    panels[-1].set_ylabel("CPU-seconds per GiB")
    return panels[0]
