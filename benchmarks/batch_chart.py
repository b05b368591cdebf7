# SPDX-License-Identifier: Apache-2.0
"""The chart of the batch: time, memory, speed and CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.charts import COLOURS, target_line, write_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

OURS, OTHERS = "GenerateImagesToS3Operator", "others"


@dataclass(frozen=True)
class Figures:
    """The figures to draw, by the name of their bar; the batch's names begin with ``batch``.

    :param seconds: Wall time.
    :param memory: In MiB, of the batch only.
    :param rates: Images per second.
    :param cpu: CPU-seconds per image.
    """

    seconds: Mapping[str, float]
    memory: Mapping[str, float]
    memory_limit: float
    rates: Mapping[str, float]
    cpu: Mapping[str, float]


def draw(figure: FigureBase, figures: Figures) -> Axes:
    """Draw all panels, and return the one with both colors."""
    time, memory, rate, cpu = figure.subplots(1, 4, width_ratios=(3, 2, 2, 2))
    _bars(time, figures.seconds, "Wall time", "seconds", digits=1)
    _bars(memory, figures.memory, "Memory of the batch", "MiB above the idle process", digits=0, ours=True)
    target_line(memory, figures.memory_limit, f"target: {figures.memory_limit:g} MiB")
    _bars(rate, figures.rates, "Throughput in Airflow", "images per second", digits=2)
    cpu.set_yscale("log")
    cpu.yaxis.set_major_formatter("{x:g}")
    _bars(cpu, figures.cpu, "CPU of all Airflow", "CPU-seconds per image (logarithmic)", digits=3)
    cpu.set_ylim(min(figures.cpu.values()) / 4, 2 * max(figures.cpu.values()))
    return time  # type: ignore[no-any-return]


def _bars(
    axes: Axes, values: Mapping[str, float], title: str, unit: str, *, digits: int, ours: bool = False
) -> None:
    axes.grid(visible=True, axis="y")
    labelled: set[str] = set()
    for place, (name, value) in enumerate(values.items()):
        owner = OURS if ours or name.startswith("batch") else OTHERS
        colour = COLOURS[0] if owner == OURS else COLOURS[1]
        # One legend entry per color.
        label = None if owner in labelled else owner
        labelled.add(owner)
        axes.bar(place, value, 0.7, color=colour, label=label)
        write_value(axes, value, (place, value), digits)
    axes.set_xticks(range(len(values)), list(values), fontsize=8.5)
    axes.margins(y=0.14)
    axes.set_title(title)
    axes.set_ylabel(unit)
