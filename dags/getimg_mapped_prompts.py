# SPDX-License-Identifier: Apache-2.0
"""
One task per prompt with dynamic task mapping, and one transfer for all files.

It shows ``.partial().expand()`` over a list that another task returns, throttled by an Airflow pool so that
no more requests run at once than the account allows, and ``map_index_template``, which names each mapped
task by its prompt in the UI.

It needs:

- the connections ``getimg_default`` and ``aws_default``,
- the Airflow Variable ``getimg_bucket``: the name of an S3 bucket,
- the pool ``getimg``, with one slot per concurrent request that the account allows:
  ``airflow pools set getimg 4 "Concurrent requests of the getimg.ai account" --include-deferred``.

Safe to run twice: the keys contain the generation's id, so a second run adds files and overwrites none. It is
billed again.
"""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG, task

from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

with DAG(
    dag_id="getimg_mapped_prompts",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    tags=["getimg", "example"],
    doc_md=__doc__,
    params={"subjects": ["a lighthouse", "a red fox", "a night train"]},
):

    @task
    def write_prompts(params: dict | None = None) -> list[str]:
        """Return a prompt per subject; a real DAG would read them from a table."""
        return [f"{subject}, as a linocut print in two colours" for subject in (params or {})["subjects"]]

    generate_images = GenerateImageOperator.partial(
        task_id="generate_images",
        model="seedream-5-lite",
        aspect_ratio="1:1",
        output_format="webp",
        pool="getimg",
        map_index_template="{{ task.prompt }}",
    ).expand(prompt=write_prompts())

    TransferToS3Operator(
        task_id="save_to_s3",
        generation=generate_images.output,
        s3_bucket="{{ var.value.getimg_bucket }}",
        s3_key="getimg/mapped/{{ (dag_run.logical_date or dag_run.run_after) | ds }}/{generation_id}-{index}.{extension}",
    )
