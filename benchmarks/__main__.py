# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks against local servers, side by side in one run: ``python -m benchmarks``.

Prints tables, and writes ``NAME.png`` and ``NAME.json`` into ``benchmarks/results``. The exit code is 1 if a target
was missed. ``--quick`` takes about two minutes, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from airflow_provider_getimg.testing.server import SimulatorError
from benchmarks import batch, machine, memory, network, transfer, videos
from benchmarks.report import Options, Report, save, show
from benchmarks.testbed import Testbed
from devstack import StackError

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 150
RESULTS = Path(__file__).parent / "results"
#: Each takes the servers and the options. To add one, write a module with a ``run`` function and list it here.
BENCHMARKS: dict[str, Callable[[Testbed, Options], Report]] = {
    "transfer": transfer.run,
    "network": network.run,
    "memory": memory.run,
    "batch": batch.run,
    "videos": videos.run,
}


def main() -> int:
    """Run the command line in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="may be given more than once")
    parser.add_argument("--quick", action="store_true", help="a smoke test: small sizes, not quotable")
    parser.add_argument("--repetitions", type=int, metavar="N")
    parser.add_argument("--files", type=int, metavar="N", help="how many files the transfer copies")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the cases")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    arguments = parser.parse_args()
    # SIGTERM acts like Ctrl-C, and also ends everything that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    if not console.is_terminal:
        # In a log, don't limit the tables to 80 columns.
        console = Console(width=WIDTH)
    started = time.monotonic()

    def progress(text: str) -> None:
        line = f"{time.monotonic() - started:6.1f} s  {text}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    options = Options(arguments.quick, arguments.repetitions, arguments.files, arguments.seed, progress)
    about = machine.describe()
    console.print(machine.in_one_line(about), markup=False, highlight=False, soft_wrap=True)
    reports = []
    try:
        with Testbed() as testbed:
            for name in arguments.only or BENCHMARKS:
                reports.append(BENCHMARKS[name](testbed, options))
                saved = save(reports[-1], arguments.results, about, quick=options.quick)
                progress(f"{name}: {' and '.join(map(str, saved))}")
    except (SimulatorError, StackError) as error:
        console.print(f"\n{error}", soft_wrap=True, markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("\nEnded.", highlight=False)
        return 130
    for report in reports:
        show(report, console, quick=options.quick)
    missed = any(not target.reached for report in reports for target in report.targets)
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
