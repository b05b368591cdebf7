# SPDX-License-Identifier: Apache-2.0
"""The result of a benchmark, and its output: tables on the console, a chart and the raw figures in files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks import charts, machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from rich.console import Console

NOT_QUOTABLE = "QUICK RUN, NOT QUOTABLE"


@dataclass(frozen=True)
class Options:
    """The command-line options.

    :param quick: A smoke test with small sizes, whose figures mean nothing.
    :param repetitions: How many times each case is measured; None for a benchmark's own default.
    :param files: How many files are copied; None for a benchmark's own default.
    :param seed: For the random order of the cases.
    :param progress: Shows a line of progress.
    """

    quick: bool
    repetitions: int | None
    files: int | None
    seed: int
    progress: Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """What was promised, and what was measured."""

    promise: str
    measured: str
    reached: bool


@dataclass(frozen=True)
class Report:
    """The outcome of one benchmark.

    :param name: The name of its files.
    :param title: One sentence that says what was measured, and how.
    :param parameters: Sizes, counts and the like.
    :param runs: The individual measurements.
    :param summary: One row per case.
    :param tables: The summary, for the console.
    :param draw: Draws the chart, as :func:`benchmarks.charts.save` requires.
    """

    name: str
    title: str
    parameters: dict[str, Any]
    runs: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    targets: list[Target]
    tables: list[Table] = field(default_factory=list)
    draw: Callable[[FigureBase], Axes] | None = None


def show(report: Report, console: Console, *, quick: bool) -> None:
    """Print the tables and the targets."""
    console.print(f"\n[bold]{report.title}[/bold]")
    if quick:
        console.print(f"[bold red]{NOT_QUOTABLE}[/bold red]")
    for table in report.tables:
        console.print(table)
    targets = Table("target", "measured", "reached")
    for target in report.targets:
        targets.add_row(
            target.promise, target.measured, "[green]yes[/green]" if target.reached else "[red]NO[/red]"
        )
    console.print(targets)


def save(report: Report, folder: Path, about: dict[str, Any], *, quick: bool) -> list[Path]:
    """Write the raw figures and the chart, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"quick-{report.name}" if quick else report.name
    figures = folder / f"{stem}.json"
    content = {
        "benchmark": report.name,
        "quotable": not quick,
        "machine": about,
        "parameters": report.parameters,
        "targets": [asdict(target) for target in report.targets],
        "summary": report.summary,
        "runs": report.runs,
    }
    figures.write_text(json.dumps(content, indent=2) + "\n")
    saved = [figures]
    if report.draw is not None:
        picture = folder / f"{stem}.png"
        heading = f"{NOT_QUOTABLE}: {report.title}" if quick else report.title
        charts.save(picture, heading, machine.in_one_line(about), report.draw)
        saved.append(picture)
    return saved
