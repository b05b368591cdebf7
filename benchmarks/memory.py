# SPDX-License-Identifier: Apache-2.0
"""How much memory a copy takes above an idle worker, for small and large files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.charts import Bar, bars, target_line
from benchmarks.copiers import COPIERS, LOOP, OURS, copy
from benchmarks.report import Options, Report, Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    from benchmarks.process import Usage
    from benchmarks.testbed import Testbed

MIB = 2**20
SPREAD_BYTES = 64 * MIB
LIMIT_BYTES = 200 * MIB


@dataclass(frozen=True)
class Case:
    """Files of one size, copied at once."""

    files: int
    file_bytes: int
    concurrency: int

    @property
    def name(self) -> str:
        """Its name in tables and charts."""
        size = f"{self.file_bytes // MIB} MiB" if self.file_bytes < 1024 * MIB else "1 GiB"
        return f"1 × {size}" if self.files == 1 else f"{self.files} × {size}\n{self.concurrency} at once"


FULL = (Case(1, MIB, 1), Case(1, 100 * MIB, 1), Case(1, 1024 * MIB, 1), Case(8, 100 * MIB, 8))
QUICK = (Case(1, MIB, 1), Case(8, 8 * MIB, 8))


def run(testbed: Testbed, options: Options) -> Report:
    """Measure every case once: memory hardly depends on other load on the machine."""
    cases = QUICK if options.quick else FULL
    runs: dict[tuple[Case, str], Usage] = {}
    for case in cases:
        files = testbed.make_files(case.files, case.file_bytes)
        for copier in COPIERS:
            usage = runs[case, copier] = copy(copier, testbed, files, case.concurrency)
            options.progress(
                f"memory: {copier}, {case.name}: {usage.extra_bytes / MIB:.1f} MiB".replace("\n", ", ")
            )
    rows = [
        asdict(case) | {"copier": copier, "extra_bytes": usage.extra_bytes} | asdict(usage)
        for (case, copier), usage in runs.items()
    ]
    return Report(
        name="memory",
        title="Peak memory while copying to S3, above the idle process",
        parameters={
            "source": "VmHWM, set back after the imports; rclone: sampled, above a start without work"
        },
        runs=rows,
        summary=rows,
        targets=_targets(cases, runs),
        tables=[_table(cases, runs)],
        draw=lambda figure: _draw(figure, cases, runs),
    )


def _targets(cases: tuple[Case, ...], runs: dict[tuple[Case, str], Usage]) -> list[Target]:
    single = [runs[case, OURS].extra_bytes for case in cases if case.files == 1]
    spread = max(single) - min(single)
    many = max(runs[case, OURS].extra_bytes for case in cases if case.files > 1)
    return [
        Target(
            f"one file, of any size: a spread under {SPREAD_BYTES // MIB} MiB",
            f"{min(single) / MIB:.1f} to {max(single) / MIB:.1f} MiB: a spread of {spread / MIB:.1f}",
            spread < SPREAD_BYTES,
        ),
        Target(
            f"8 at once: under {LIMIT_BYTES // MIB} MiB above an idle worker",
            f"{many / MIB:.1f} MiB",
            many < LIMIT_BYTES,
        ),
    ]


def _table(cases: tuple[Case, ...], runs: dict[tuple[Case, str], Usage]) -> Table:
    table = Table("files", title="MiB above the idle process; seconds")
    for copier in COPIERS:
        table.add_column(copier, justify="right")
    for case in cases:
        usages = [runs[case, copier] for copier in COPIERS]
        table.add_row(
            case.name.replace("\n", ", "),
            *(f"{usage.extra_bytes / MIB:.1f}; {usage.seconds:.1f}" for usage in usages),
        )
    return table


def _draw(figure: FigureBase, cases: tuple[Case, ...], runs: dict[tuple[Case, str], Usage]) -> Axes:
    axes: Axes = figure.subplots()
    series = {copier: [Bar(runs[case, copier].extra_bytes / MIB) for case in cases] for copier in COPIERS}
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    bars(axes, [case.name for case in cases], series, digits=0, floor=1.0)
    highest = max(LIMIT_BYTES, *(usage.extra_bytes for usage in runs.values()))
    axes.set_ylim(1, 2 * highest / MIB)
    target_line(axes, LIMIT_BYTES / MIB, f"target for 8 at once: {LIMIT_BYTES // MIB} MiB")
    axes.set_xlabel(f"files copied ({LOOP}: one after the other)")
    axes.set_ylabel("MiB above the idle process (logarithmic)")
    return axes
