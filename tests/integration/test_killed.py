# SPDX-License-Identifier: Apache-2.0
"""
Task processes killed with SIGKILL at moments spread over a whole generation.

A moment is a line of the provider's code, or of Airflow's task runner after it (the push of the XCom): the
process of the first try dies right before executing it. Airflow then retries by itself, and the simulator's
ledger shows what was billed.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from airflow_provider_getimg.durable.ledger import KEY

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow

PRICE = 0.04


def places_of_a_whole_try(run, tmp_path: Path) -> list[str]:
    """Return the place of each line that a try executes if nothing kills it: file, function, line."""
    assert run("killed", moments=[0], witnesses=str(tmp_path)).state == "success"
    return (tmp_path / "0").read_text().splitlines()


def turning_points(places: list[str]) -> list[int]:
    """Return the moments at which the recorded state changes: around each write of the ledger and the push of the XCom."""

    def lines_in(function: str) -> list[int]:
        return [number for number, place in enumerate(places, start=1) if f":{function}:" in place]

    intent, response = lines_in("record_intent"), lines_in("record_response")
    return [
        intent[0],  # nothing recorded, nothing sent
        intent[-1] + 1,  # intent recorded, not sent
        response[0],  # paid, response not recorded
        # Paid and recorded. Not the very next line: a response that is read in more pieces shifts all later lines.
        lines_in("_log_made")[0],
        lines_in("_push_xcom_if_needed")[0],
        lines_in("_xcom_push")[-1],
    ]


def spread(lines: int, moments: int) -> list[int]:
    """Return ``moments`` line numbers, evenly from the first line to the last."""
    return [1 + (lines - 2) * number // (moments - 1) for number in range(moments)]


def check_killed(
    ended, simulator: GetimgSimulator, tmp_path: Path, moments: list[int], resubmits: bool
) -> Counter[str]:
    """Check each killed task against its bill, and return the counts of outcomes."""
    ledger = simulator.ledger.raw()
    billed = Counter(post["prompt"] for post in ledger["posts"] if post["billed"])
    tasks = ended.tasks("generate")
    assert len(tasks) == len(moments)
    seen: Counter[str] = Counter()
    for index, (task, moment) in enumerate(zip(tasks, moments, strict=True)):
        where = f"killed before line {moment}, {(tmp_path / str(index)).read_text()}"
        paid = billed[f"moment {moment} ({index})"]
        if task["try_number"] == 1:
            # Its success was reported before the process died, so there is nothing to retry.
            assert (task["state"], paid) == ("success", 1), where
            seen["ended"] += 1
            continue
        assert task["try_number"] == 2, where
        second = ended.log("generate", try_number=2, map_index=index)
        if task["state"] == "success":
            response = ended.xcom("generate", map_index=index)
            assert response["id"] in {post["id"] for post in ledger["posts"]}, where
            assert paid == (2 if "the request is sent again" in second and paid == 2 else 1), where
            if paid == 2:
                assert resubmits, where
            seen["reused" if "Reusing generation" in second else "generated"] += 1
        else:
            assert task["state"] == "failed", where
            assert not resubmits, where
            assert paid <= 1, where
            assert "It may have been billed." in second, where
            assert "Try 1 sent this request at" in second, where
            seen["stopped"] += 1
    assert ledger["billed_total"] == pytest.approx(PRICE * sum(billed.values()))
    return seen


@pytest.mark.parametrize("spread_moments", [0, pytest.param(40, marks=pytest.mark.long)])
@pytest.mark.parametrize("on_unknown_outcome", ["fail", "resubmit"])
def test_killed_task_pays_twice_only_under_resubmit_and_logs_it(
    simulator, run, tmp_path, spread_moments, on_unknown_outcome
):
    places = places_of_a_whole_try(run, tmp_path)
    simulator.ledger.clear()
    for witness in tmp_path.iterdir():
        witness.unlink()
    moments = turning_points(places) + (spread(len(places), spread_moments) if spread_moments else [])
    ended = run(
        "killed",
        moments=moments,
        witnesses=str(tmp_path),
        on_unknown_outcome=on_unknown_outcome,
        timeout=60 + 20 * len(moments),
    )
    resubmits = on_unknown_outcome == "resubmit"
    seen = check_killed(ended, simulator, tmp_path, moments, resubmits)
    assert seen["generated"] >= (3 if resubmits else 1)
    assert seen["stopped"] >= (0 if resubmits else 2)
    assert seen["reused"] >= 3


# Where both tries of a task die, and how often its prompt was billed in total after a Clear.
DEAD_BEFORE = {
    "ledger.py:record_intent:": 1,  # nothing was sent
    "client.py:generate_image:": 1,  # intent recorded, not sent: the second try stops
    "ledger.py:record_response:": 2,  # paid, response lost with the process
    "one_generation.py:_push:": 1,  # paid, not in XCom
    "task_runner.py:_xcom_push:": 1,
    "ledger.py:delivered:": 1,  # in XCom, not recorded as delivered
    "task_runner.py:_push_xcom_if_needed:": 2,  # delivered: the Clear generates another image
}


@pytest.mark.long
def test_clear_of_a_killed_task_pays_again_only_if_its_image_was_delivered_or_lost(simulator, run, tmp_path):
    moments = list(DEAD_BEFORE)
    ended = run("killed", moments=moments, witnesses=str(tmp_path), deaths=2, timeout=240)
    for index, task in enumerate(ended.tasks("generate")):
        assert (task["state"], task["try_number"]) == ("failed", 2), (moments[index], task)
    before = Counter(post["prompt"] for post in simulator.ledger.raw()["posts"] if post["billed"])
    ended.clear("generate")
    assert ended.state == "success"
    posts = simulator.ledger.raw()["posts"]
    after = Counter(post["prompt"] for post in posts if post["billed"])
    for index, (moment, paid) in enumerate(DEAD_BEFORE.items()):
        prompt = f"moment {moment} ({index})"
        assert after[prompt] == paid, (moment, before[prompt], after[prompt])
        ids = [post["id"] for post in posts if post["prompt"] == prompt]
        assert ended.xcom("generate", map_index=index)["id"] == ids[-1], moment
    assert simulator.ledger.total_cost == pytest.approx(PRICE * sum(DEAD_BEFORE.values()))


@pytest.mark.parametrize(("on_unknown_outcome", "paid"), [("fail", 1), ("resubmit", 2)])
def test_request_in_flight_when_its_task_is_killed_is_sent_again_only_under_resubmit(
    airflow_stack: Airflow, simulator: GetimgSimulator, on_unknown_outcome, paid
):
    simulator.settings(latency=4)
    airflow_stack.wait_for_dag("paying_once")
    airflow_stack.unpause("paying_once")
    run_id = airflow_stack.trigger("paying_once", conf={"on_unknown_outcome": on_unknown_outcome})

    def pid() -> int | None:
        [task] = airflow_stack.task_instances("paying_once", run_id)
        return task["pid"] if simulator.ledger else None

    running = airflow_stack.poll(pid, 60)
    assert running
    os.kill(running, signal.SIGKILL)
    state = airflow_stack.wait("paying_once", run_id)
    posts = simulator.ledger.raw()["posts"]
    assert len(posts) == paid
    log = airflow_stack.task_log("paying_once", run_id, "generate", try_number=2)
    if on_unknown_outcome == "fail":
        assert state == "failed"
        assert "No response was recorded: its worker was killed, lost, or out of time." in log
    else:
        assert state == "success"
        assert "the request is sent again, and may be billed twice." in log


def test_task_terminated_during_a_request_logs_that_it_may_be_billed(
    airflow_stack: Airflow, simulator: GetimgSimulator
):
    simulator.faults.add({"on": "image", "kind": "hang", "seconds": 120})
    airflow_stack.wait_for_dag("paying_once")
    airflow_stack.unpause("paying_once")
    run_id = airflow_stack.trigger("paying_once")
    assert airflow_stack.poll(lambda: len(simulator.ledger), 60)
    # Like the button in the UI: the worker gets a SIGTERM.
    airflow_stack.request(
        "PATCH",
        f"/dags/paying_once/dagRuns/{run_id}/taskInstances/generate",
        body={"new_state": "failed"},
    )

    def log() -> str | None:
        text = airflow_stack.task_log("paying_once", run_id, "generate")
        return text if "terminated with a request in flight" in text else None

    assert "which may be billed" in str(airflow_stack.poll(log, 60))
    assert len(simulator.ledger) == 1


def test_ledger_entry_in_the_task_state_store_never_expires(
    airflow_stack: Airflow, run, simulator, state_extra
):
    if state_extra:
        pytest.skip("with a state folder, the entry is kept in S3")
    ended = run("paying_once")
    with sqlite3.connect(f"file:{airflow_stack.home / 'airflow.db'}?mode=ro", uri=True) as database:
        rows = database.execute(
            "select value, expires_at from task_state_store where run_id = ? and key = ?", (ended.run_id, KEY)
        ).fetchall()
    [(value, expires_at)] = rows
    entry = json.loads(value)
    assert expires_at is None
    assert entry["state"] == "completed"
    assert entry["response"]["id"] == ended.xcom()["id"]
