# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devstack import StackError
from devstack.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path


def test_files_of_the_last_run_are_deleted(tmp_path: Path) -> None:
    folder = tmp_path / ".demo"
    with Workspace(folder):
        (folder / "images").mkdir()
        (folder / "images" / "a.png").touch()
    assert (folder / "images" / "a.png").exists()
    with Workspace(folder):
        assert not (folder / "images").exists()


def test_files_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / ".demo"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(StackError, match="did not make"), Workspace(folder):
        pass
    assert (folder / "thesis.tex").exists()


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".demo").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StackError, match="not a folder of the demo's own"):
        Workspace(tmp_path / ".demo").__enter__()


def test_second_run_at_once_is_told_so_and_deletes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / ".demo"
    with Workspace(folder):
        (folder / "logs").mkdir()
        with pytest.raises(StackError, match="Another demo is running"), Workspace(folder):
            pass
        assert (folder / "logs").exists()
