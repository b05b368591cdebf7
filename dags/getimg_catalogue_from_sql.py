# SPDX-License-Identifier: Apache-2.0
"""
Pictures for the rows of a SQL table that have none.

It shows ``@task.getimg_images_to_s3``, whose function returns the requests, and ``read_manifest``, which gives a downstream
task the outcome of each: the DAG reads rows without a picture, generates and saves their images, and writes the URIs back.

It needs:

- the connections ``getimg_default`` and ``aws_default``,
- the connection ``getimg_catalogue`` to a database that ``apache-airflow-providers-common-sql`` supports, and its provider: SQLite
  (``apache-airflow-providers-sqlite``), PostgreSQL, Snowflake, ... For another database, change only the connection,
- in that database, the table ``CREATE TABLE products (sku VARCHAR(100) PRIMARY KEY, name VARCHAR(500) NOT NULL, picture VARCHAR(2000))``,
- the Airflow Variable ``getimg_bucket``: the name of an S3 bucket.

It has no schedule: trigger it. A run costs at most 5 cents for each of its rows (``max_cost``). Safe to run twice: rows that have a
picture are skipped, and one whose image was saved but never written back is not billed again. A row that fails stays without a
picture, so the next run tries it again.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from datetime import datetime
from typing import Any

from airflow.sdk import DAG, BaseHook, task

from airflow_provider_getimg.manifests import read_manifest

DATABASE = "getimg_catalogue"

with DAG(
    dag_id="getimg_catalogue_from_sql",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    tags=["getimg", "example"],
    doc_md=__doc__,
    params={"rows": 100, "model": "seedream-5-lite"},
    # Two runs at once would pay for the same rows.
    max_active_runs=1,
) as dag:

    @task.getimg_images_to_s3(
        defaults={"model": "{{ params.model }}", "aspect_ratio": "1:1", "output_format": "webp"},
        s3_bucket="{{ var.value.getimg_bucket }}",
        s3_key="getimg/catalogue/{sku}-{version}.{extension}",
        max_cost="{{ 0.05 * params.rows }}",
        # Rows that fail stay without a picture, so the next run tries them again.
        max_failures="100%",
    )
    def draw_products(params: Any = None) -> list[dict[str, Any]]:
        """Return a request for each product without a picture."""
        rows = BaseHook.get_hook(DATABASE).get_records(
            f"SELECT sku, name FROM products WHERE picture IS NULL ORDER BY sku LIMIT {int(params['rows'])}"
        )
        requests = []
        for sku, name in rows:
            prompt = f"Product photo of {name}, studio light, white background"
            # A renamed product gets a new object.
            version = hashlib.sha256(prompt.encode()).hexdigest()[:8]
            requests.append({"prompt": prompt, "labels": {"sku": sku, "version": version}})
        return requests

    @task
    def write_back(summary: dict[str, Any]) -> int:
        """Write the URIs to the table, and return the number of them."""
        lines = read_manifest(summary["manifest"], summary["aws_conn_id"])
        pictures = [(line.uri, line.labels["sku"]) for line in lines if line.is_saved]
        hook = BaseHook.get_hook(DATABASE)
        value = hook.placeholder
        with closing(hook.get_conn()) as connection, closing(connection.cursor()) as cursor:
            cursor.executemany(f"UPDATE products SET picture = {value} WHERE sku = {value}", pictures)
            connection.commit()
        return len(pictures)

    write_back(draw_products())
