# SPDX-License-Identifier: Apache-2.0
"""Updates ``docs/versions.md`` with the results of ``noxfile.py`` in ``.matrix/results/``: ``make versions``."""

from __future__ import annotations

import json
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "versions.md"
SETS = ("3.1.2", "3.1.8", "3.2.2", "3.3.0", "newest", "lowest")
ROW = re.compile(r"^\| 3\.(\d+)\S* \| (\S+) \|.*\|$", re.MULTILINE)
PACKAGES = (
    "apache-airflow",
    "apache-airflow-providers-amazon",
    "apache-airflow-providers-common-compat",
    "httpx",
    "pydantic",
)


def row(cell: dict) -> str:
    """Return a cell's result as a row of the page's table."""
    versions = [cell["versions"][name] for name in PACKAGES]
    ran = [cell.get("tests", 0), cell.get("dags", 0), "passed" if cell["passed"] else "failed", cell["day"]]
    return f"| {' | '.join(map(str, [cell['versions']['python'], cell['set'], *versions, *ran]))} |"


def updated(page: str, rows: list[str]) -> str:
    """Return the page with these rows; those of other cells stay as they are."""
    table = "\n".join([*(found[0] for found in ROW.finditer(page)), *rows])
    cells = {(int(found[1]), SETS.index(found[2])): found[0] for found in ROW.finditer(table)}
    head, *_, end = ROW.split(page)
    return head + "\n".join(cells[cell] for cell in sorted(cells)) + end


if __name__ == "__main__":
    results = (REPOSITORY / ".matrix" / "results").glob("*.json")
    PAGE.write_text(updated(PAGE.read_text(), [row(json.loads(path.read_text())) for path in results]))
