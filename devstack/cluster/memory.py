# SPDX-License-Identifier: Apache-2.0
"""How much memory the cluster's components use, and a table of it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """The memory of a process and its descendants, in bytes.

    :param rss: The sum of their resident memory. Shared memory, such as a forked worker's modules or
        PostgreSQL's buffers, counts once for each process.
    :param pss: The same, with shared memory divided among the processes that share it.
    """

    rss: int
    pss: int
    processes: int


def memory_of(processes: Iterable[psutil.Process]) -> Memory:
    """Measure these processes together."""
    rss = pss = count = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            held = process.memory_full_info()
            rss, pss, count = rss + held.rss, pss + getattr(held, "pss", held.rss), count + 1
    return Memory(rss, pss, count)


def memory_table(*measured: tuple[str, Mapping[str, Memory]]) -> Table:
    """Return a table of each component's memory, with columns for each time it was measured."""
    table = Table("component", "processes", title="Memory in MiB")
    for title, _ in measured:
        table.add_column(f"{title} PSS", justify="right")
        table.add_column("RSS", justify="right")
    for name in measured[-1][1]:
        figures = [figure for _, found in measured for figure in _figures(found.get(name))]
        table.add_row(name, str(measured[-1][1][name].processes), *figures)
    totals = [str(sum(held.pss for held in found.values()) // MIB) for _, found in measured]
    table.add_row("all", "", *(cell for total in totals for cell in (total, "")), style="bold")
    return table


def _figures(held: Memory | None) -> list[str]:
    return ["", ""] if held is None else [str(held.pss // MIB), str(held.rss // MIB)]
