# SPDX-License-Identifier: Apache-2.0
"""
A product picture, and a clip that begins with it.

It shows ``GenerateVideoOperator``: a picture is generated and saved, then read from S3 as the first frame of a five-second video,
which is saved beside it. Waiting for the video takes no worker slot: the task is deferred to the triggerer.

It needs:

- the connections ``getimg_default`` and ``aws_default``,
- the Airflow Variable ``getimg_bucket``: the name of an S3 bucket,
- a triggerer, which ``airflow standalone`` and all managed Airflows run.

It has no schedule: trigger it. A run costs a picture and five seconds of video, at most 5 cents and 1 dollar
(``max_cost``). A retry pays for neither again. Safe to run twice: each run has its own keys.
"""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG

from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.operators.video import GenerateVideoOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

BUCKET = "{{ var.value.getimg_bucket }}"
FOLDER = "getimg/products/{{ run_id }}"

with DAG(
    dag_id="getimg_product_video",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    tags=["getimg", "example"],
    doc_md=__doc__,
    params={"product": "a ceramic teapot", "seconds": 5},
):
    draw = GenerateImageOperator(
        task_id="draw",
        model="seedream-5-lite",
        prompt="Product photo of {{ params.product }}, studio light, white background",
        aspect_ratio="16:9",
        output_format="png",
        max_cost="0.05",
    )
    save_picture = TransferToS3Operator(
        task_id="save_picture",
        generation=draw.output,
        s3_bucket=BUCKET,
        s3_key=f"{FOLDER}/picture.{{extension}}",
    )
    film = GenerateVideoOperator(
        task_id="film",
        model="seedance-v1-pro",
        prompt="The camera moves slowly around {{ params.product }}",
        duration="{{ params.seconds }}",
        images=[
            {"url": "{{ ti.xcom_pull(task_ids='save_picture')[0]['uri'] }}", "role": "first_frame"},
        ],
        max_cost="1",
        deferrable=True,
    )
    save_video = TransferToS3Operator(
        task_id="save_video",
        generation=film.output,
        s3_bucket=BUCKET,
        s3_key=f"{FOLDER}/video.{{extension}}",
    )
    save_picture >> film
