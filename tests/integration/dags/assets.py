# SPDX-License-Identifier: Apache-2.0
"""DAGs that the tests of assets run: one writes an object, whose key is in the run's conf, and others wait for it."""

from __future__ import annotations

from datetime import datetime

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, AssetAlias

from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

START = datetime(2026, 1, 1)
# The Variable ``getimg_bucket``, which is not there while the schedules below are parsed.
BUCKET = "getimg-stack"

with DAG("assets_write", schedule=None, start_date=START, params={"key": "assets/poster.png"}):
    TransferToS3Operator(
        task_id="save",
        generation=GenerateImageOperator(
            task_id="generate", model="seedream-5-lite", prompt="A poster", output_format="png"
        ).output,
        s3_bucket=BUCKET,
        s3_key="{{ params.key }}",
        if_exists="replace",
        outlets=[AssetAlias("assets_written")],
    )

for dag_id, asset in {
    "assets_read_by_name": Asset("poster", f"s3://{BUCKET}/assets/poster.png"),
    "assets_read_by_uri": Asset(f"s3://{BUCKET}/assets/l%C3%A4nge%201.png"),
}.items():
    with DAG(dag_id, schedule=[asset], start_date=START, catchup=False):
        EmptyOperator(task_id="nothing")
