# SPDX-License-Identifier: Apache-2.0
"""A task that does nothing, and one of the Amazon provider's: what using S3 in a task costs. Its conf is that of ``benchmark_mapped``."""

from __future__ import annotations

from airflow.providers.amazon.aws.operators.s3 import S3CreateObjectOperator
from airflow.sdk import DAG, task_group

from benchmarks.dag_parts import SETTINGS, DoNothing, write_prompts

with DAG(dag_id="benchmark_amazon", schedule=None, **SETTINGS):

    @task_group
    def write_object(prompt: str) -> None:
        """Write an object."""
        DoNothing(task_id="first") >> S3CreateObjectOperator(
            task_id="second",
            s3_bucket="{{ dag_run.conf['bucket'] }}",
            s3_key="objects/{{ ti.map_index }}",
            data=prompt,
        )

    write_object.expand(prompt=write_prompts())
