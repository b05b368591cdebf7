# SPDX-License-Identifier: Apache-2.0
"""
One image a day: the prompt comes from the logical date, the file ends up in S3.

It shows the two operators side by side. The output of ``generate_image`` goes to ``save_to_s3`` unchanged, and each
saved object is an asset event, which schedules ``getimg_asset_consumer``.

It needs:

- the connections ``getimg_default`` (type getimg.ai) and ``aws_default``,
- the Airflow Variable ``getimg_bucket``: the name of an S3 bucket.

Unpausing it starts the run of last midnight immediately: there is no need to trigger one as well. Safe to run twice: a
second run of the same day replaces the object at the same key. That run generates, and is billed for, a new image.
"""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG, AssetAlias

from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

with DAG(
    dag_id="getimg_daily_image",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["getimg", "example"],
    doc_md=__doc__,
):
    generate_image = GenerateImageOperator(
        task_id="generate_image",
        model="seedream-5-lite",
        prompt="A postcard for {{ (dag_run.logical_date or dag_run.run_after).strftime('%A, %d %B %Y') }}: a quiet harbour, in watercolour",
        aspect_ratio="3:2",
        output_format="png",
    )

    TransferToS3Operator(
        task_id="save_to_s3",
        generation=generate_image.output,
        s3_bucket="{{ var.value.getimg_bucket }}",
        s3_key="getimg/daily/{{ (dag_run.logical_date or dag_run.run_after) | ds }}-{index}.{extension}",
        if_exists="replace",
        outlets=[AssetAlias("getimg_pictures")],
    )
