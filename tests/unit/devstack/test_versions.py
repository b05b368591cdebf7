# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import runpy
from pathlib import Path

import nox

REPOSITORY = Path(__file__).parents[3]
SCRIPT = runpy.run_path(str(REPOSITORY / "docs" / "versions.py"))
PAGE = SCRIPT["PAGE"].read_text()
PYTHONS = nox.project.python_versions(nox.project.load_toml(REPOSITORY / "pyproject.toml"))
VERSIONS = dict.fromkeys(SCRIPT["PACKAGES"], "9.9.9")


def cell(python: str, versions: str, passed: bool) -> str:
    ran = {"tests": 7, "dags": 5} if passed else {}
    found = VERSIONS | {"python": python}
    return SCRIPT["row"]({"set": versions, "versions": found, "passed": passed, "day": "2026-12-01", **ran})


def cells(page: str) -> list[tuple[str, str, str]]:
    return re.findall(r"^\| (3\.\d+)\S* \| (\S+) \|.*\| (\w+) \| 20\S+ \|$", page, re.MULTILINE)


def test_the_page_shows_that_the_whole_matrix_passed():
    assert cells(PAGE) == [(python, name, "passed") for python in PYTHONS for name in SCRIPT["SETS"]]


def test_a_cell_replaces_its_own_row_and_no_other():
    page = SCRIPT["updated"](PAGE, [cell("3.12.9", "lowest", passed=False)])
    old, new = PAGE.splitlines(), page.splitlines()
    [changed] = [number for number, line in enumerate(old) if line != new[number]]
    assert old[changed].startswith("| 3.12.1 | lowest |")
    assert new[changed] == f"| 3.12.9 | lowest |{' 9.9.9 |' * 5} 0 | 0 | failed | 2026-12-01 |"
    assert len(old) == len(new)


def test_a_python_that_is_new_gets_a_row_after_the_others():
    page = SCRIPT["updated"](PAGE, [cell("3.14.0", "newest", passed=True)])
    assert cells(page) == [*cells(PAGE), ("3.14", "newest", "passed")]


def test_a_page_without_new_results_stays_as_it_is():
    assert SCRIPT["updated"](PAGE, []) == PAGE
