# SPDX-License-Identifier: Apache-2.0
"""The example DAG ``getimg_catalogue_from_sql`` with a real table, run in this process."""

from __future__ import annotations

import re
import runpy
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from devstack.example_dags import PRODUCTS, make_catalogue
from tests.conftest import REPOSITORY

DAG_FILE = REPOSITORY / "dags" / "getimg_catalogue_from_sql.py"


@pytest.fixture
def database(tmp_path):
    return tmp_path / "catalogue.db"


@pytest.fixture
def run(run_dag, getimg_conn, seaweedfs, bucket, database):
    connection = make_catalogue(database)

    def run(**fields: Any):
        # Loaded again for each run, as Airflow does.
        dag = runpy.run_path(str(DAG_FILE))["dag"]
        return run_dag(
            dag,
            connections={"aws_default": seaweedfs.aws_connection(), "getimg_catalogue": connection},
            variables={"getimg_bucket": bucket},
            **fields,
        )

    return run


def rows(database: Any, statement: str) -> list[Any]:
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute(statement).fetchall()
        connection.commit()
        return found


def pictures(database: Any) -> dict[str, str | None]:
    return dict(rows(database, "SELECT sku, picture FROM products"))


def test_each_row_gets_its_image(run, database, seaweedfs, bucket, getimg_simulator):
    run()
    found = pictures(database)
    assert found.keys() == PRODUCTS.keys()
    for sku, uri in found.items():
        assert re.fullmatch(rf"s3://{bucket}/getimg/catalogue/{sku}-[0-9a-f]{{8}}\.webp", uri)
        stored = seaweedfs.client().head_object(Bucket=bucket, Key=uri.removeprefix(f"s3://{bucket}/"))
        assert stored["ContentType"] == "image/webp"
    assert sorted(entry.prompt for entry in getimg_simulator.ledger) == sorted(
        f"Product photo of {name}, studio light, white background" for name in PRODUCTS.values()
    )


def test_second_run_pays_only_for_new_rows(run, database, getimg_simulator):
    run()
    before = pictures(database)
    rows(database, "INSERT INTO products (sku, name) VALUES ('D-04', 'a bowl')")
    assert run().xcoms["write_back"] == 1
    assert len(getimg_simulator.ledger) == len(PRODUCTS) + 1
    assert run().xcoms["write_back"] == 0
    assert pictures(database).items() > before.items()


def test_image_that_was_not_written_back_is_not_billed_again(run, database, getimg_simulator):
    run()
    before = pictures(database)
    rows(database, "UPDATE products SET picture = NULL")
    run()
    assert len(getimg_simulator.ledger) == len(PRODUCTS)
    assert pictures(database) == before


def test_renamed_product_gets_a_new_image(run, database):
    run()
    before = pictures(database)
    rows(database, "UPDATE products SET picture = NULL, name = 'a red teapot' WHERE sku = 'A-17'")
    run()
    after = pictures(database)
    assert after["A-17"] not in (None, before["A-17"])
    assert after["B-02"] == before["B-02"]


def test_failed_row_is_generated_in_the_next_run(run, database, getimg_simulator):
    getimg_simulator.faults.add({"on": "image", "kind": "status", "status": 400})
    assert run().xcoms["write_back"] == len(PRODUCTS) - 1
    assert list(pictures(database).values()).count(None) == 1
    run()
    assert None not in pictures(database).values()


def test_rows_param_limits_the_rows_of_a_run(run, database, getimg_simulator):
    run(run_conf={"rows": 2})
    assert len(getimg_simulator.ledger) == 2
