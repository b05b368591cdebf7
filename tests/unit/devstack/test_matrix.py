# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from devstack import matrix, matrix_cell
from devstack.matrix_cell import (
    REPOSITORY,
    TESTS,
    Cell,
    Result,
    counts,
    interpreter,
    mirrored,
    tools,
)
from devstack.matrix_releases import RELEASES
from devstack.release_check_build import differences

if TYPE_CHECKING:
    from pathlib import Path

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
PASSED = Result(
    python="3.11",
    release="newest",
    state="passed",
    versions={"python": "3.11.7", "apache-airflow": "3.3.2", "httpx": "0.28.1"},
    tests=512,
    dags=4,
    seconds=200.0,
)
FAILED = Result(python="3.12", release="lowest", versions={"python": "3.12.1"}, tests=510, failures=2)
MISSING = Result(python="3.13", release="3.3.0", state="missing")


def shim(folder: Path, name: str, said: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{said}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with nothing but this Python: no pyenv, an empty PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return tmp_path


class TestInterpreter:
    def test_its_own_is_found_without_a_path(self, machine):
        assert interpreter(OWN) is not None

    def test_one_that_is_not_there_is_not(self, machine):
        assert interpreter("3.99") is None

    def test_a_shim_that_leads_nowhere_is_none(self, machine):
        shim(machine / "bin", "python3.99", "echo 'command not found' >&2; exit 127")
        assert interpreter("3.99") is None

    def test_one_of_another_version_is_none(self, machine):
        shim(machine / "bin", "python3.99", "echo 3.98")
        assert interpreter("3.99") is None

    @pytest.mark.parametrize("where", ["bin", "pyenv/versions/3.99.1/bin"])
    def test_one_on_path_or_of_pyenv_is_found(self, machine, where):
        shim(machine / where, "python3.99", "echo 3.99")
        assert interpreter("3.99") == machine / where / "python3.99"

    def test_a_cell_without_one_says_so_and_is_no_success(self, machine):
        cell = Cell("3.99", RELEASES["newest"], machine / "cell", machine, machine / "no.whl")
        result = cell.run()
        assert (result.state, result.reason) == ("missing", "There is no Python 3.99 on this machine.")


class TestCommand:
    def test_what_a_command_says_is_returned_and_what_it_complains_of_is_logged(self, tmp_path):
        cell = Cell(OWN, RELEASES["newest"], tmp_path, tmp_path, tmp_path / "no.whl")
        said = cell._command("It failed", "sh", "-c", "echo yes; echo but >&2")
        assert said == "yes\n"
        assert cell.log.read_text().splitlines()[1:] == ["but", "yes"]

    @pytest.mark.parametrize(
        ("command", "reason"), [("echo no; exit 3", "It failed"), ("sleep 60", "It failed: it took over 1 s")]
    )
    def test_one_that_fails_says_why(self, tmp_path, command, reason):
        cell = Cell(OWN, RELEASES["newest"], tmp_path, tmp_path, tmp_path / "no.whl")
        with pytest.raises(matrix_cell.StackError) as raised:
            cell._command("It failed", "sh", "-c", command, timeout=1)
        assert raised.value.message == f"{reason} (see {cell.log}):"


def test_the_tests_of_every_room_of_the_package_are_run_in_a_cell():
    found = mirrored(REPOSITORY / "tests")
    assert {f"tests/unit/{room}" for room in ("api", "hooks", "operators", "transfers")} <= set(found)
    assert "tests/unit/devstack" not in found
    assert "tests/unit/test_retry.py" in found
    assert all((REPOSITORY / path).exists() for path in [*found, *TESTS])


def test_every_tool_of_a_cell_is_in_the_dev_group():
    assert {re.split(r"[\[>=<]", line)[0] for line in tools()} == matrix_cell.TOOLS


@pytest.mark.parametrize("text", ["newest,oldest", "", ","])
def test_a_cell_that_there_is_not_is_refused(text):
    with pytest.raises(SystemExit, match="is none of"):
        matrix.chosen(text, list(RELEASES), "--only")


def test_cells_are_chosen_in_their_own_order():
    assert matrix.chosen("lowest, 3.3.0", list(RELEASES), "--only") == ["3.3.0", "lowest"]


def test_a_report_is_counted(tmp_path):
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite tests="10" failures="1" errors="2" skipped="3"></testsuite></testsuites>'
    )
    assert counts(report) == (4, 3)


def test_the_page_tells_each_cell_and_keeps_its_text(tmp_path):
    page = tmp_path / "versions.md"
    page.write_text(f"before\n{matrix.BEGIN}\n{matrix.END}\nafter\n")
    matrix.write(page, [MISSING, FAILED, PASSED], "2026-11-23")
    text = page.read_text()
    assert text.startswith(f"before\n{matrix.BEGIN}\n| Python |")
    assert text.endswith(f"|\n{matrix.END}\nafter\n")
    assert text.splitlines()[4:7] == [
        "| 3.11.7 | newest | 3.3.2 |  |  | 0.28.1 |  | 512 of 512 | 4 | passed | 2026-11-23 |",
        "| 3.12.1 | lowest |  |  |  |  |  | 510 of 512 | 0 | failed | 2026-11-23 |",
        "| 3.13 | 3.3.0 |  |  |  |  |  | 0 | 0 | no Python 3.13 here | 2026-11-23 |",
    ]


def test_a_part_leaves_the_rows_of_other_cells(tmp_path):
    page = tmp_path / "versions.md"
    page.write_text(f"{matrix.BEGIN}\n{matrix.END}\n")
    matrix.write(page, [PASSED, FAILED], "2026-11-23")
    matrix.write(page, [replace(FAILED, state="passed", tests=512, failures=0)], "2026-11-24")
    assert page.read_text().splitlines()[3:5] == [
        "| 3.11.7 | newest | 3.3.2 |  |  | 0.28.1 |  | 512 of 512 | 4 | passed | 2026-11-23 |",
        "| 3.12.1 | lowest |  |  |  |  |  | 512 of 512 | 0 | passed | 2026-11-24 |",
    ]


def test_a_page_without_its_marks_is_left_alone(tmp_path):
    page = tmp_path / "versions.md"
    page.write_text(f"before\n{matrix.BEGIN}\n")
    with pytest.raises(SystemExit, match="has no lines"):
        matrix.write(page, [PASSED], "2026-11-23")
    assert page.read_text() == f"before\n{matrix.BEGIN}\n"


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Let cells end as told, and return what the command is run with."""
    page = tmp_path / "versions.md"
    page.write_text(f"{matrix.BEGIN}\n{matrix.END}\n")
    ends: dict[tuple[str, str], str] = {}

    def run(cell: Cell) -> Result:
        state = ends.get((cell.python, cell.release.name), "passed")
        return Result(cell.python, cell.release.name, state=state, tests=1)

    monkeypatch.setattr(matrix, "PAGE", page)
    monkeypatch.setattr(matrix, "REPOSITORY", tmp_path)
    monkeypatch.setattr(matrix, "pythons", lambda: ["3.11", "3.12"])
    monkeypatch.setattr(matrix, "stage", lambda folder: (folder, folder))
    monkeypatch.setattr(Cell, "run", run)
    return page, ends


def test_the_whole_matrix_writes_the_page(cells):
    page, _ = cells
    assert matrix.main([]) == 0
    assert page.read_text().count("| passed |") == 6


def test_a_part_of_it_does_not(cells):
    page, _ = cells
    before = page.read_text()
    assert matrix.main(["--only", "newest,lowest"]) == 0
    assert matrix.main(["--python", "3.12"]) == 0
    assert page.read_text() == before
    assert matrix.main(["--python", "3.12", "--record"]) == 0
    assert page.read_text().count("| passed |") == 3


@pytest.mark.parametrize("state", ["failed", "missing"])
def test_one_cell_that_did_not_pass_is_a_failure_and_is_told(cells, state):
    page, ends = cells
    ends["3.12", "lowest"] = state
    assert matrix.main([]) == 1
    assert page.read_text().count("| passed |") == 5


def test_the_page_shows_that_the_whole_matrix_passed():
    text = (REPOSITORY / "docs" / "versions.md").read_text()
    table = text.partition(matrix.BEGIN)[2].partition(matrix.END)[0]
    rows = re.findall(r"^\| (3\.\d+)\S* \| (\S+) \|.*\| passed \| 20\S+ \|$", table, re.MULTILINE)
    assert set(rows) == {(python, release) for python in matrix.pythons() for release in RELEASES}
    assert len(rows) == max(0, table.strip().count("\n") - 1)


def test_files_that_differ_are_named():
    assert differences({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "0", "d": "4"}) == ["b", "c", "d"]
