# SPDX-License-Identifier: Apache-2.0
"""
Tests the provider's wheel on the versions that it says it works on.

``python -m devstack.matrix [--only newest,lowest] [--python 3.11] [--jobs 2] [--record]
[--keep]``, or ``make test-matrix``. The whole matrix, or a part with ``--record``, writes its result into
``docs/versions.md``. Environments are built in ``.matrix/``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from devstack.matrix_cell import REPOSITORY, STAGED, Cell, Result
from devstack.matrix_releases import RELEASES
from devstack.release_check_build import build

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = REPOSITORY / ".matrix"
PAGE = REPOSITORY / "docs" / "versions.md"
ROW = re.compile(r"^\| (3\.\d+)\S* \| (\S+) \|.*$", re.MULTILINE)
BEGIN, END = "<!-- result: begin -->", "<!-- result: end -->"
# The column of the page, and the package whose version it shows.
COLUMNS = {
    "Airflow": "apache-airflow",
    "Amazon provider": "apache-airflow-providers-amazon",
    "common.compat": "apache-airflow-providers-common-compat",
    "httpx": "httpx",
    "pydantic": "pydantic",
}


def pythons() -> list[str]:
    """Return the Python versions that the project's classifiers name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE)
    return sorted(found, key=lambda version: int(version.partition(".")[2]))


def chosen(text: str, allowed: list[str], what: str) -> list[str]:
    """Return a comma-separated option as a list, in the order of what is allowed."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        raise SystemExit(f"{what}: {', '.join(unknown) or 'nothing'} is none of {', '.join(allowed)}.")
    return [name for name in allowed if name in names]


def stage(folder: Path) -> tuple[Path, Path]:
    """Copy what the tests need, without the package, and build its wheel; return where both are."""
    tree, dist = folder / "tree", folder / "dist"
    for path in (tree, dist):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    for name in STAGED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    return tree, build("wheel", REPOSITORY, dist)


def state_of(result: Result) -> str:
    """Say in a word or two what became of a cell."""
    if result.state == "missing":
        return f"no Python {result.python} here"
    return result.state


def shown(results: list[Result]) -> Table:
    """Return the results as a table for the terminal."""
    table = Table(title="The provider's wheel, by version")
    for column in ("Python", "Set", *COLUMNS, "Tests", "DAGs", "Seconds", "Result"):
        right = column in ("Tests", "DAGs", "Seconds")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for result in results:
        failed = f" ({result.failures} failed)" if result.failures else ""
        table.add_row(
            result.versions.get("python", result.python),
            result.release,
            *(result.versions.get(package, "") for package in COLUMNS.values()),
            f"{result.tests}{failed}",
            str(result.dags),
            f"{result.seconds:.0f}",
            state_of(result),
            style="green" if result.state == "passed" else "red",
        )
    return table


def row(result: Result, day: str) -> str:
    """Return a result as a row of the page's table."""
    cells = [result.versions.get("python", result.python), result.release]
    cells += [result.versions.get(package, "") for package in COLUMNS.values()]
    total = result.tests + result.failures
    tests = f"{result.tests} of {total}" if total else "0"
    return f"| {' | '.join([*cells, tests, str(result.dags), state_of(result), day])} |"


def write(page: Path, results: list[Result], day: str) -> None:
    """Put results into the table between the marks of the page; rows of other cells stay as they are."""
    before, found, rest = page.read_text().partition(BEGIN)
    table, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"{page} has no lines {BEGIN} and {END}.")
    rows = {(told[1], told[2]): told[0] for told in ROW.finditer(table)}
    rows |= {(result.python, result.release): row(result, day) for result in results}
    ordered = [rows[cell] for cell in ((p, r) for p in pythons() for r in RELEASES) if cell in rows]
    head = [
        f"| Python | Set | {' | '.join(COLUMNS)} | Tests passed | Example DAGs run | Result | Run on |",
        f"|---|---|{'---|' * len(COLUMNS)}---:|---:|---|---|",
    ]
    page.write_text("\n".join([f"{before}{BEGIN}", *head, *ordered, f"{END}{after}"]))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line in the module's docstring."""
    parser = argparse.ArgumentParser(description="Test the provider's wheel on all versions.")
    parser.add_argument("--only", help=f"some of: {','.join(RELEASES)}", default=",".join(RELEASES))
    parser.add_argument(
        "--python", help=f"some of: {','.join(pythons())}, or this: the one that runs this", default=""
    )
    parser.add_argument("--jobs", type=int, default=2, help="cells at once (default: 2)")
    parser.add_argument(
        "--record", action="store_true", help="write a part's result into docs/versions.md, too"
    )
    parser.add_argument("--keep", action="store_true", help="keep the environments of cells that passed")
    options = parser.parse_args(arguments)
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    asked = own if options.python == "this" else options.python or ",".join(pythons())
    # Whoever has a newer Python than those may test that as well.
    some_pythons = chosen(asked, [*pythons(), *({own} - set(pythons()))], "--python")
    some_releases = chosen(options.only, list(RELEASES), "--only")

    console = Console()
    # A log has no width, and needs whole columns.
    console.width = max(console.width, 130)
    tree, wheel = stage(FOLDER)
    cells = [
        Cell(python, RELEASES[name], FOLDER / f"{python}-{name}", tree, wheel, options.keep)
        for python in some_pythons
        for name in some_releases
    ]

    whole = some_pythons == pythons() and some_releases == list(RELEASES)
    page = Lock()

    def run(cell: Cell) -> Result:
        result = cell.run()
        if result.reason:
            console.print(result.reason, markup=False, highlight=False, soft_wrap=True)
        about = f"Python {cell.python}, {cell.release.name}: {state_of(result)} after {result.seconds:.0f} s"
        console.print(about, highlight=False)
        if whole or options.record:
            # Each by itself: what is known after half an hour is not lost with the rest.
            with page:
                write(PAGE, [result], datetime.now(UTC).date().isoformat())
        return result

    # A cell waits for half of its time, for servers that start and time-outs that are tested.
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(run, cells))
    console.print(shown(results))
    return 0 if all(result.state == "passed" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
