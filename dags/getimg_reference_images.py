# SPDX-License-Identifier: Apache-2.0
"""
A product photo in S3 guides the new image.

It shows an ``s3://`` reference: the worker reads it with ``aws_conn_id`` and sends it inside the request, so
the bucket stays private.

It needs:

- the connections ``getimg_default`` and ``aws_default``,
- the Airflow Variable ``getimg_bucket``: the name of an S3 bucket,
- in that bucket, the photo, a PNG, JPEG or WebP of at most 10 MiB, under the key in the DAG's param
  ``photo``.

Safe to run twice: the key contains the run's id. Each run is billed.
"""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG

from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

with DAG(
    dag_id="getimg_reference_images",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    tags=["getimg", "example"],
    doc_md=__doc__,
    params={"photo": "getimg/reference/product.png"},
):
    generate_image = GenerateImageOperator(
        task_id="generate_image",
        model="seedream-5-lite",
        prompt="The same product on a wooden table, warm studio lighting",
        images=["s3://{{ var.value.getimg_bucket }}/{{ params.photo }}"],
        resolution="2K",
        output_format="webp",
    )

    TransferToS3Operator(
        task_id="save_to_s3",
        generation=generate_image.output,
        s3_key="s3://{{ var.value.getimg_bucket }}/getimg/products/{{ run_id }}-{index}.{extension}",
        extra_args={"StorageClass": "STANDARD", "CacheControl": "max-age=86400"},
    )
