# SPDX-License-Identifier: Apache-2.0
"""A pair of tasks for each image. A run's conf holds ``bucket`` and ``images``."""

from __future__ import annotations

from airflow.sdk import DAG, task_group

from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator
from benchmarks.dag_parts import REQUEST, SETTINGS, write_prompts

with DAG(dag_id="benchmark_mapped", schedule=None, **SETTINGS):

    @task_group
    def make(prompt: str) -> None:
        """Make an image, and save it."""
        generated = GenerateImageOperator(task_id="generate", prompt=prompt, **REQUEST)
        TransferToS3Operator(
            task_id="save",
            generation=generated.output,
            s3_bucket="{{ dag_run.conf['bucket'] }}",
            s3_key="images/{generation_id}.{extension}",
        )

    make.expand(prompt=write_prompts())
