# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from devstack import Simulator, StackError

if TYPE_CHECKING:
    from pathlib import Path


def generate(simulator: Simulator) -> httpx.Response:
    return httpx.post(
        f"{simulator.url}/v2/images/generations",
        headers={"Authorization": f"Bearer {simulator.api_key}"},
        json={"model": "seedream-5-lite", "prompt": "a lighthouse"},
    )


def test_ledger_is_the_witness_of_what_was_billed(simulator: Simulator) -> None:
    assert generate(simulator).status_code == 200
    ledger = simulator.ledger()
    assert [post["prompt"] for post in ledger["posts"]] == ["a lighthouse"]
    assert ledger["billed_total"] == ledger["posts"][0]["billed"] > 0


def test_reset_forgets_the_ledger_and_the_balance(simulator: Simulator) -> None:
    generate(simulator)
    simulator.set_balance("0.00")
    assert generate(simulator).status_code == 402
    simulator.reset()
    assert simulator.ledger()["posts"] == []
    assert generate(simulator).status_code == 200


def test_connection_leads_to_it(simulator: Simulator) -> None:
    connection = json.loads(simulator.connection())
    assert connection == {
        "conn_type": "getimg",
        "host": simulator.url,
        "password": simulator.api_key,
    }
    assert simulator.url.startswith("http://127.0.0.1:")


def test_start_that_fails_gives_the_reason(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    with pytest.raises(StackError, match=r"The simulator died at start-up.*\nno such luck"):
        Simulator(log=tmp_path / "log", program=program).start()
