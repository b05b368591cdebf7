# SPDX-License-Identifier: Apache-2.0
"""DAGs that the tests of transfers run: what is copied, and when a process dies, is in the run's conf."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task
from line_count import LineCount

from airflow_provider_getimg.hooks.masking import Redacted
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

START = datetime(2026, 1, 1)
QUICK = timedelta(seconds=1)
COUNTED = (
    "airflow_provider_getimg/transfers/",
    "airflow_provider_getimg/s3/",
    "airflow_provider_getimg/hooks/masking.py",
    "airflow_provider_getimg/links.py",
)


class KilledTransferToS3Operator(TransferToS3Operator):
    """
    Copies the responses in the file ``responses``; the first try's process dies at ``moment``, see :class:`LineCount`.

    From a file, because responses hold signed URLs: in the run's conf Airflow would store and show them.
    """

    template_fields = (*TransferToS3Operator.template_fields, "responses", "moment", "witness")

    def __init__(self, *, responses: str, moment: Any = None, witness: str = "", **kwargs: Any) -> None:
        super().__init__(generation=[], **kwargs)
        self.responses = responses
        self.moment = moment
        self.witness = witness

    def execute(self, context: Any) -> Any:
        self.generation = Redacted(json.loads(Path(self.responses).read_text()))
        if self.moment is not None and context["ti"].try_number == 1:
            LineCount(self.moment, Path(self.witness), COUNTED).start()
        return super().execute(context)


with DAG(
    "transfer_killed",
    schedule=None,
    start_date=START,
    params={"moments": [0], "folder": "/tmp", "prefix": "killed"},
    max_active_tasks=4,
):

    @task
    def moments(params: dict | None = None) -> list[dict[str, Any]]:
        given = params or {}
        return [
            {
                "responses": f"{given['folder']}/responses-{index}.json",
                "moment": moment,
                "witness": f"{given['folder']}/{index}",
                "s3_key": f"{given['prefix']}/{index}/{{generation_id}}-{{index}}.{{extension}}",
            }
            for index, moment in enumerate(given["moments"])
        ]

    KilledTransferToS3Operator.partial(
        task_id="copy",
        s3_bucket="{{ var.value.getimg_bucket }}",
        retries=2,
        retry_delay=QUICK,
    ).expand_kwargs(moments())

with DAG(
    "transfer_interrupted",
    schedule=None,
    start_date=START,
    params={"responses": "", "prefix": "interrupted", "aws": "aws_default"},
):
    # The test sees to the interruption.
    KilledTransferToS3Operator(
        task_id="copy",
        responses="{{ params.responses }}",
        s3_bucket="{{ var.value.getimg_bucket }}",
        s3_key="{{ params.prefix }}/{generation_id}-{index}.{extension}",
        aws_conn_id="{{ params.aws }}",
        retries=2,
        retry_delay=QUICK,
    )

with DAG(
    "transfer_resumed",
    schedule=None,
    start_date=START,
    params={"prompts": ["one", "two", "three"], "prefix": "resumed"},
):

    @task
    def prompts(params: dict | None = None) -> list[str]:
        return (params or {})["prompts"]

    generated = GenerateImageOperator.partial(task_id="generate", model="seedream-5-lite").expand(
        prompt=prompts()
    )

    TransferToS3Operator(
        task_id="save",
        generation=generated.output,
        s3_bucket="{{ var.value.getimg_bucket }}",
        s3_key="{{ params.prefix }}/{generation_id}-{index}.{extension}",
        retries=2,
        retry_delay=QUICK,
    )
