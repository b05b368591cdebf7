# SPDX-License-Identifier: Apache-2.0
"""
No secret outlives a task except where it must: the tests search all files and the whole metadata database.

The API key of the simulator is random, and so are the signatures of its URLs.
"""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow

# The generation's response, and the ledger's entry with it if the ledger is in the database.
SIGNED = {("xcom", "return_value"), ("task_state_store", "getimg_generation")}


def cells(database: Path) -> Iterator[tuple[str, str, str]]:
    """Yield every cell of every table: the table, the row's ``key`` if it has one, and the content as text."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        tables = [
            name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")
        ]
        for table in tables:
            cursor = connection.execute(f'select * from "{table}"')
            names = [column[0] for column in cursor.description]
            for row in cursor:
                key = str(dict(zip(names, row, strict=True)).get("key"))
                for value in row:
                    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
                    yield table, key, text


def files(home: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file under ``AIRFLOW_HOME`` except the database, with its text."""
    for path in home.rglob("*"):
        if path.is_file() and not path.name.startswith("airflow.db"):
            yield path, path.read_text(errors="replace")


@pytest.fixture(scope="module")
def signatures(airflow_stack: Airflow) -> set[str]:
    """The signatures of all generations of this session, from the responses in the database."""
    return {
        signature
        for table, key, text in cells(airflow_stack.home / "airflow.db")
        if (table, key) in SIGNED
        for signature in re.findall(r"sig=([0-9a-f]{32,})", text)
    }


@pytest.fixture(autouse=True, scope="module")
def _work_that_succeeds_and_fails(airflow_stack: Airflow, simulator_server: GetimgSimulator) -> None:
    """Run the operators, single and mapped, through success, a lost response, rejections, reuse and failed downloads."""
    simulator_server.reset()
    echo = f'{{"error": {{"message": "No: {simulator_server.api_key}", "code": "x"}}}}'
    signed = '{"id": "i", "status": "completed", "data": [{"link": "http://127.0.0.1:1/f?exp=1&sig=feedfacefeedface"}]}'
    for dag_id, faults, state in (
        ("getimg_daily_image", [], "success"),
        ("getimg_mapped_prompts", [], "success"),
        ("getimg_daily_image", [{"on": "download", "kind": "status", "status": 410}], "failed"),
        ("paying_once_mapped", [{"on": "download", "kind": "truncate", "times": 30}], "failed"),
        ("paying_once", [{"on": "image", "kind": "drop_after_billing"}], "failed"),
        ("paying_once", [{"on": "image", "kind": "status", "status": 200, "body": signed}], "failed"),
        ("paying_once", [{"on": "image", "kind": "status", "status": 403, "body": echo}], "failed"),
        ("fails_after_the_response", [], "success"),
    ):
        simulator_server.faults.add(*faults)
        airflow_stack.wait_for_dag(dag_id)
        airflow_stack.unpause(dag_id)
        run_id = airflow_stack.trigger(dag_id)
        assert airflow_stack.wait(dag_id, run_id, timeout=180) == state, (dag_id, faults)
        simulator_server.faults.clear()


def test_api_key_is_in_no_file_and_no_table(airflow_stack: Airflow, simulator_server: GetimgSimulator):
    key = simulator_server.api_key
    assert [path for path, text in files(airflow_stack.home) if key in text] == []
    assert {table for table, _, text in cells(airflow_stack.home / "airflow.db") if key in text} == set()


def test_signatures_are_stored_only_in_the_responses(airflow_stack: Airflow, signatures, state_extra):
    assert len(signatures) >= 8
    seen = {
        (table, key)
        for table, key, text in cells(airflow_stack.home / "airflow.db")
        if any(signature in text for signature in signatures)
    }
    assert seen == {place for place in SIGNED if place[0] == "xcom" or not state_extra}
    leaks = [
        path for path, text in files(airflow_stack.home) if any(signature in text for signature in signatures)
    ]
    assert leaks == []


def test_signature_in_an_unreadable_response_is_stored_only_in_the_ledger(
    airflow_stack: Airflow, state_extra
):
    marked = "feedfacefeedface"
    assert [path for path, text in files(airflow_stack.home) if marked in text] == []
    # The ledger keeps an unreadable response: it may have been billed.
    tables = {table for table, _, text in cells(airflow_stack.home / "airflow.db") if marked in text}
    assert tables == (set() if state_extra else {"task_state_store"})


def test_only_the_xcoms_of_generating_tasks_have_signed_urls(airflow_stack: Airflow, signatures):
    with sqlite3.connect(f"file:{airflow_stack.home / 'airflow.db'}?mode=ro", uri=True) as connection:
        rows = connection.execute("select task_id, value from xcom").fetchall()
    signed = {task_id for task_id, value in rows if any(signature in str(value) for signature in signatures)}
    assert {"generate", "generate_image", "generate_images"} <= signed
    assert not {task_id for task_id in signed if task_id.startswith("save")}


def test_rendered_fields_show_the_url_and_mask_its_signature(airflow_stack: Airflow):
    with sqlite3.connect(f"file:{airflow_stack.home / 'airflow.db'}?mode=ro", uri=True) as connection:
        rendered = [
            str(fields)
            for (fields,) in connection.execute(
                "select rendered_fields from rendered_task_instance_fields where task_id in ('save', 'save_to_s3')"
            )
        ]
    # The output of a mapped task is a lazy sequence, and rendered as one.
    whole = [fields for fields in rendered if "LazyXComSequence" not in fields]
    assert whole
    for fields in whole:
        assert "/v2/downloads/req-" in fields
        assert "?..." in fields
