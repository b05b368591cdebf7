# SPDX-License-Identifier: Apache-2.0
"""Speed and CPU of copying files over TLS from far away, compared with rclone and ``HttpToS3Operator``'s loop."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.copiers import COPIERS, LOOP, OURS, RCLONE, RCLONE_FLAGS, copy
from benchmarks.detour import MIB, Detour
from benchmarks.report import Options, Report, Target

if TYPE_CHECKING:
    from benchmarks.process import Usage
    from benchmarks.testbed import Testbed

#: Seconds each way: to the files, and to S3.
DELAYS = ((0.04, 0.005), (0.0, 0.0))
FAR_FACTOR, NEAR_FACTOR = 1.8, 0.95
#: Limits: CPU-seconds per file, by its size in bytes.
CPU_SECONDS = {MIB: 0.008, 4 * MIB: 0.010}


@dataclass(frozen=True)
class Size:
    """How much is copied, and how."""

    files: int
    file_sizes: tuple[int, ...]
    concurrencies: tuple[int, ...]


FULL = Size(100, (MIB, 4 * MIB), (1, 4, 8, 16))
QUICK = Size(16, (MIB,), (4,))


@dataclass(frozen=True)
class Case:
    """One copier under one set of conditions."""

    copier: str
    file_bytes: int
    delay: float
    concurrency: int


@dataclass(frozen=True)
class Cost:
    """The cost of a file."""

    files_per_second: float
    cpu_seconds_per_file: float
    handshakes_per_file: float


def run(testbed: Testbed, options: Options) -> Report:
    """Measure every case once, in random order under each delay."""
    size = QUICK if options.quick else FULL
    count = options.files or size.files
    order = random.Random(options.seed)
    costs: dict[Case, Cost] = {}
    runs: list[dict[str, Any]] = []
    for delay, s3_delay in DELAYS:
        with Detour(testbed, delay, s3_delay) as detour:
            files = {file_bytes: detour.make_files(count, file_bytes) for file_bytes in size.file_sizes}
            cases = [
                Case(copier, file_bytes, delay, concurrency)
                for copier in COPIERS
                for file_bytes in size.file_sizes
                for concurrency in ((1,) if copier == LOOP else size.concurrencies)
            ]
            order.shuffle(cases)
            for case in cases:
                detour.handshakes()
                # Measure the operator's default.
                usage = copy(case.copier, testbed, files[case.file_bytes], case.concurrency, if_exists="skip")
                costs[case] = cost = _cost(usage, count, detour.handshakes())
                runs.append(asdict(case) | asdict(usage) | asdict(cost))
                options.progress(
                    f"network: {case.copier}, {case.file_bytes / MIB:g} MiB, {delay * 1000:g} ms, concurrency "
                    f"{case.concurrency}: {cost.files_per_second:.1f} files/s, "
                    f"{cost.cpu_seconds_per_file * 1000:.1f} CPU-ms and {cost.handshakes_per_file:.2f} handshakes a file"
                )
    return Report(
        name="network",
        title=f"{count} files over TLS into S3 over TLS, near and far",
        parameters=asdict(size) | {"files": count, "delays": DELAYS, "rclone_flags": RCLONE_FLAGS},
        runs=runs,
        summary=[asdict(case) | asdict(cost) for case, cost in costs.items()],
        targets=_targets(size, count, costs),
        tables=[_table(size, costs)],
    )


def _cost(usage: Usage, count: int, handshakes: int) -> Cost:
    return Cost(count / usage.seconds, usage.cpu_seconds / count, handshakes / count)


def _targets(size: Size, count: int, costs: dict[Case, Cost]) -> list[Target]:
    targets = []
    for delay, _ in DELAYS:
        factor = FAR_FACTOR if delay else NEAR_FACTOR
        for file_bytes in size.file_sizes:
            for concurrency in size.concurrencies:
                where = f"{file_bytes / MIB:g} MiB, {delay * 1000:g} ms each way, concurrency {concurrency}"
                ours, rclone = (
                    costs[Case(copier, file_bytes, delay, concurrency)] for copier in (OURS, RCLONE)
                )
                ratio = ours.files_per_second / rclone.files_per_second
                targets.append(
                    Target(
                        f"{factor:g} times rclone's speed, at least ({where})",
                        f"{ours.files_per_second:.1f} against {rclone.files_per_second:.1f} files/s: {ratio:.2f}",
                        ratio >= factor,
                    )
                )
                limit = CPU_SECONDS[file_bytes]
                targets.append(
                    Target(
                        f"{limit * 1000:g} CPU-ms a file, at most ({where})",
                        f"{ours.cpu_seconds_per_file * 1000:.1f}; rclone {rclone.cpu_seconds_per_file * 1000:.1f}",
                        ours.cpu_seconds_per_file <= limit,
                    )
                )
                targets.append(
                    Target(
                        f"two handshakes for each of the files at once, at most ({where})",
                        f"{ours.handshakes_per_file * count:.0f}; rclone {rclone.handshakes_per_file * count:.0f}",
                        ours.handshakes_per_file * count <= 2 * concurrency,
                    )
                )
    return targets


def _table(size: Size, costs: dict[Case, Cost]) -> Table:
    table = Table("file", "delay", "concurrency", title="files/s, CPU-ms a file")
    for copier in COPIERS:
        table.add_column(copier, justify="right")
    for file_bytes in size.file_sizes:
        for delay, _ in DELAYS:
            for concurrency in size.concurrencies:
                row = [f"{file_bytes / MIB:g} MiB", f"{delay * 1000:g} ms", str(concurrency)]
                for copier in COPIERS:
                    at = costs[Case(copier, file_bytes, delay, 1 if copier == LOOP else concurrency)]
                    row.append(f"{at.files_per_second:.1f}, {at.cpu_seconds_per_file * 1000:.1f}")
                table.add_row(*row)
    return table
