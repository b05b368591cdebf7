# SPDX-License-Identifier: Apache-2.0
"""What the demo checks before it starts anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from devstack import StackError
from devstack.demo import MARKER, Demo, emptied

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_getimg.testing import GetimgSimulator


def demo(simulator: GetimgSimulator, **changes: str) -> Demo:
    settings = {"api_key": simulator.api_key, "api_url": simulator.url} | changes
    return Demo(Console(), **settings)


def test_files_of_the_last_run_are_deleted_except_for_images(tmp_path: Path) -> None:
    folder = tmp_path / ".demo"
    with emptied(folder):
        for name in ("airflow", "images"):
            (folder / name).mkdir()
            (folder / name / "a").touch()
        (folder / "link").symlink_to(tmp_path)
    with emptied(folder):
        assert {entry.name for entry in folder.iterdir()} == {MARKER, "images"}
        assert (folder / "images" / "a").exists()
    assert tmp_path.exists()


def test_folder_that_the_demo_did_not_create_is_rejected_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / ".demo"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(StackError, match="was not made by the demo"), emptied(folder):
        pass
    assert (folder / "thesis.tex").exists()


def test_symbolic_link_as_the_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".demo").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StackError, match="was not made by the demo"), emptied(tmp_path / ".demo"):
        pass


def test_concurrent_run_is_rejected_and_deletes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / ".demo"
    with emptied(folder):
        (folder / "logs").mkdir()
        with pytest.raises(StackError, match="Another demo is running"), emptied(folder):
            pass
        assert (folder / "logs").exists()


def test_price_is_read_from_the_api_and_nothing_is_billed(simulator: GetimgSimulator) -> None:
    model, price = demo(simulator)._price(simulator.api_key)
    assert model == "seedream-5-lite"
    assert price > 0
    assert not simulator.ledger


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"api_key": "sk_wrong_key"}, "401"), ({"api_url": "http://127.0.0.1:9"}, r"127\.0\.0\.1:9")],
    ids=["key", "address"],
)
def test_failed_price_lookup_names_the_reason_but_not_the_key(
    simulator: GetimgSimulator, changes: dict, reason: str
) -> None:
    refused = demo(simulator, **changes)
    with pytest.raises(StackError, match=reason) as caught:
        refused._price(refused.api_key)
    assert "sk_" not in str(caught.value)
