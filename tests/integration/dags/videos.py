# SPDX-License-Identifier: Apache-2.0
"""DAGs that the tests of videos run: what is filmed, and where its task dies, is in the run's conf."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task
from line_count import LineCount

from airflow_provider_getimg.operators.video import GenerateVideoOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

START = datetime(2026, 1, 1)
FAST: dict[str, Any] = {"model": "reel-sound", "poll_interval": 0.5, "retry_delay": timedelta(seconds=1)}


class KilledGenerateVideoOperator(GenerateVideoOperator):
    """Ends the process of the first try with SIGKILL when it comes to ``moment``, before or after it was deferred."""

    template_fields = (*GenerateVideoOperator.template_fields, "moment", "witness")

    def __init__(self, *, moment: Any, witness: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moment = moment
        self.witness = witness

    def execute(self, context: Any) -> Any:
        self._count(context)
        return super().execute(context)

    def execute_complete(self, context: Any, event: Any) -> Any:
        self._count(context)
        return super().execute_complete(context, event)

    def _count(self, context: Any) -> None:
        if context["ti"].try_number == 1:
            LineCount(self.moment, Path(self.witness)).start()


@task
def prompts(params: dict | None = None) -> list[str]:
    return [f"Fox {number}" for number in range((params or {})["count"])]


@task
def moments(params: dict | None = None) -> list[dict[str, Any]]:
    given = params or {}
    return [
        {"moment": moment, "witness": f"{given['witnesses']}/{index}", "prompt": f"{moment} ({index})"}
        for index, moment in enumerate(given["moments"])
    ]


with DAG("videos", schedule=None, start_date=START, params={"count": 1}, max_active_tasks=16):
    filmed = GenerateVideoOperator.partial(
        task_id="generate", pool="getimg", deferrable=True, retries=2, **FAST
    ).expand(prompt=prompts())
    TransferToS3Operator(
        task_id="save",
        generation=filmed.output,
        s3_bucket="{{ var.value.getimg_bucket }}",
        s3_key="videos/{{ run_id }}/{generation_id}.{extension}",
    )

# Videos here are ready at the first poll. Airflow may fail a task that resumes within six seconds of its deferral (docs/versions.md).
for where, deferrable, poll_interval in (("worker", False, 0.5), ("triggerer", True, 6)):
    with DAG(
        f"video_killed_in_{where}",
        schedule=None,
        start_date=START,
        params={"moments": [0], "witnesses": "/tmp"},
        max_active_tasks=4,
    ):
        KilledGenerateVideoOperator.partial(
            task_id="generate",
            deferrable=deferrable,
            retries=1,
            **FAST | {"poll_interval": poll_interval},
        ).expand_kwargs(moments())
