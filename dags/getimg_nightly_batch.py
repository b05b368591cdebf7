# SPDX-License-Identifier: Apache-2.0
"""
Hundreds of images a night, in a few tasks.

It shows ``GenerateImagesToS3Operator``: a list of requests goes in, and each image is saved to S3 as soon as it arrives. The
list is split into chunks, one mapped task each, so that several workers share the night's work; the pool ``getimg`` keeps them
within the account's limit: it has a slot for each concurrent request, and a task takes as many as it uses.

It needs:

- the connections ``getimg_default`` and ``aws_default``,
- the Airflow Variable ``getimg_bucket``: the name of an S3 bucket,
- the pool ``getimg``, with one slot per concurrent request that the account allows, at least 4:
  ``airflow pools set getimg 4 "Concurrent requests of the getimg.ai account" --include-deferred``.

It has no schedule: trigger it, with the number of articles in the run's conf. A task stops at 5 cents for each of its rows
(``max_cost``). Safe to run twice: the keys consist of the day and the article's number, and a row whose image already exists
is neither requested nor billed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator

CONCURRENCY = 4

with DAG(
    dag_id="getimg_nightly_batch",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    tags=["getimg", "example"],
    doc_md=__doc__,
    params={"articles": 12, "rows_per_task": 6, "model": "seedream-5-lite"},
):

    @task
    def read_articles(params: dict[str, Any] | None = None) -> list[list[dict[str, Any]]]:
        """Return the night's requests in chunks; a real DAG would read them from a table."""
        articles, size = (params or {})["articles"], (params or {})["rows_per_task"]
        requests = [
            {"prompt": f"Product photo of teapot {number}, studio light", "labels": {"article": number}}
            for number in range(articles)
        ]
        return [requests[start : start + size] for start in range(0, len(requests), size)]

    GenerateImagesToS3Operator.partial(
        task_id="generate_images",
        defaults={"model": "{{ params.model }}", "aspect_ratio": "1:1", "output_format": "webp"},
        s3_bucket="{{ var.value.getimg_bucket }}",
        s3_key="getimg/nightly/{{ (dag_run.logical_date or dag_run.run_after) | ds }}/{article:05}.{extension}",
        concurrency=CONCURRENCY,
        pool="getimg",
        pool_slots=CONCURRENCY,
        max_cost="{{ 0.05 * params.rows_per_task }}",
        max_failures="2%",
        retries=3,
    ).expand(requests=read_articles())
