# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import runpy
from pathlib import Path

import nox

REPOSITORY = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(REPOSITORY / "docs" / "versions.py"))
PYTHONS = nox.project.python_versions(nox.project.load_toml(REPOSITORY / "pyproject.toml"))


def test_versions_page_lists_only_passed_matrix_cells_and_covers_every_python():
    page = SCRIPT["PAGE"].read_text()
    cells = re.findall(r"^\| (3\.\d+)\S* \| (\S+) \|.*\| (\w+) \| 20\S+ \|$", page, re.MULTILINE)
    known = [(python, name, "passed") for python in PYTHONS for name in SCRIPT["SETS"]]
    assert cells == [cell for cell in known if cell in cells]
    assert {python for python, _, _ in cells} == set(PYTHONS)
