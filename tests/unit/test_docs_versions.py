# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import runpy
from pathlib import Path

import nox

REPOSITORY = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(REPOSITORY / "docs" / "versions.py"))
PYTHONS = nox.project.python_versions(nox.project.load_toml(REPOSITORY / "pyproject.toml"))


def test_the_page_shows_that_each_set_passed():
    page = SCRIPT["PAGE"].read_text()
    cells = re.findall(r"^\| (3\.\d+)\S* \| (\S+) \|.*\| (\w+) \| 20\S+ \|$", page, re.MULTILINE)
    assert {name for _, name, _ in cells} == set(SCRIPT["SETS"])
    assert {python for python, _, _ in cells} <= set(PYTHONS)
    assert {result for _, _, result in cells} == {"passed"}
