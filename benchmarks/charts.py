# SPDX-License-Identifier: Apache-2.0
"""The look of all charts: light, few colors, each bar labeled with its value."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

# No window: the benchmarks also run without a display.
mpl.use("Agg")

COLOURS = ("#2f6fdf", "#8a94a6", "#e8a33d", "#5fae7d")
INK, GRID, TARGET_COLOUR = "#2b2f36", "#e4e7ec", "#c2413b"
CAPTION_COLUMNS = 150
STYLE: Any = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b9c0ca",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Bar:
    """One value, optionally with its spread."""

    value: float
    low: float | None = None
    high: float | None = None


def save(path: Path, title: str, caption: str, draw: Callable[[FigureBase], Axes]) -> None:
    """Draw a chart and write it, with its title above and the machine below.

    :param draw: Fills a figure, and returns a panel that has all series, for the legend.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 5.2), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(3, 1, height_ratios=(0.13, 0.82, 0.05))
        head, body, foot = parts
        head.text(0.008, 0.72, title, va="center", fontsize=12, fontweight="bold")
        handles, labels = draw(body).get_legend_handles_labels()
        head.legend(handles, labels, loc=(0.0, -0.05), ncols=len(labels), frameon=False)
        wrapped = "\n".join(textwrap.wrap(caption, CAPTION_COLUMNS))
        foot.text(0.008, 0.5, wrapped, va="center", fontsize=7.5, color="#6b7280")
        figure.savefig(path)


def bars(
    axes: Axes,
    groups: Sequence[str],
    series: Mapping[str, Sequence[Bar]],
    *,
    digits: int = 1,
    floor: float = 0.0,
) -> None:
    """Draw groups of bars side by side, each with its value on top and a whisker for its spread.

    :param series: One bar per group, by name.
    :param floor: No bar is drawn lower than this: a logarithmic axis has no zero.
    """
    width = 0.82 / len(series)
    axes.grid(visible=True, axis="y")
    for position, (name, values) in enumerate(series.items()):
        label: str | None = name
        for group, bar in enumerate(values):
            x = group + (position - (len(series) - 1) / 2) * width
            axes.bar(x, max(bar.value, floor), width * 0.92, color=COLOURS[position], label=label)
            top = max(bar.value, floor)
            if bar.low is not None and bar.high is not None and bar.high > bar.low:
                spread = ([bar.value - bar.low], [bar.high - bar.value])
                axes.errorbar(x, bar.value, yerr=spread, color=INK, linewidth=0.9, capsize=2.5)
                top = bar.high
            write_value(axes, bar.value, (x, top), digits)
            # One legend entry per series.
            label = None
    axes.set_xticks(range(len(groups)), groups)
    axes.margins(y=0.14)


def write_value(axes: Axes, value: float, top: tuple[float, float], digits: int) -> None:
    """Write a bar's value on top of it."""
    axes.annotate(
        f"{value:.{digits}f}", top, xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8
    )


def target_line(axes: Axes, height: float, text: str) -> None:
    """Draw a dashed line at the target."""
    axes.axhline(height, color=TARGET_COLOUR, linestyle="--", linewidth=1)
    axes.annotate(
        text,
        (0.01, height),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color=TARGET_COLOUR,
        fontsize=8,
    )
