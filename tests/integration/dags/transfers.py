# SPDX-License-Identifier: Apache-2.0
"""DAGs that the tests of transfers run: what is copied, and when a process dies, is in the run's conf."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, task

from airflow_provider_getimg.masking import Concealed
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

if TYPE_CHECKING:
    from types import FrameType

START = datetime(2026, 1, 1)
QUICK = timedelta(seconds=1)
COUNTED = (
    "airflow_provider_getimg/transfers/",
    "airflow_provider_getimg/masking.py",
    "airflow_provider_getimg/links.py",
    "execution_time/task_runner.py",
)


class LineCount:
    """
    Counts the lines that the transfer, and Airflow's task runner after it, execute in all threads.

    :param moment: The process ends with SIGKILL right before its ``moment``-th line, or before the first line at the
        place ``moment``, such as ``s3_upload.py:complete:120``. 0: never.
    :param witness: Gets the place of death, or of each line where ``moment`` is 0.
    """

    def __init__(self, moment: int | str, witness: Path) -> None:
        self._moment = moment
        self._lines = 0
        self._lock = threading.Lock()
        self._places = witness.open("a", buffering=1)

    def start(self) -> None:
        threading.settrace(self._on_call)
        sys.settrace(self._on_call)
        # The task runner's frames are older than the trace function: those that are active are asked too.
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if self._counts(frame):
                frame.f_trace = self._on_line
            frame = frame.f_back

    def _counts(self, frame: FrameType) -> bool:
        return any(part in frame.f_code.co_filename for part in COUNTED)

    def _on_call(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._on_line if self._counts(frame) else None

    def _on_line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            code = frame.f_code
            place = f"{Path(code.co_filename).name}:{code.co_name}:{frame.f_lineno}"
            with self._lock:
                self._lines += 1
                dies = self._moment in (self._lines, place)
                if dies or not self._moment:
                    self._places.write(f"{place}\n")
                if dies:
                    os.kill(os.getpid(), signal.SIGKILL)
        return self._on_line


class KilledTransferToS3Operator(TransferToS3Operator):
    """
    Copies the answers in the file ``answers``; the first try's process dies at ``moment``, see :class:`LineCount`.

    From a file, because answers hold signed URLs: in the run's conf Airflow would store and show them.
    """

    template_fields = (*TransferToS3Operator.template_fields, "answers", "moment", "witness")

    def __init__(self, *, answers: str, moment: Any = None, witness: str = "", **kwargs: Any) -> None:
        super().__init__(generation=[], **kwargs)
        self.answers = answers
        self.moment = moment
        self.witness = witness

    def execute(self, context: Any) -> Any:
        self.generation = Concealed(json.loads(Path(self.answers).read_text()))
        if self.moment is not None and context["ti"].try_number == 1:
            LineCount(self.moment, Path(self.witness)).start()
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
                "answers": f"{given['folder']}/answers-{index}.json",
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
    params={"answers": "", "prefix": "interrupted", "aws": "aws_default"},
):
    # The test sees to the interruption.
    KilledTransferToS3Operator(
        task_id="copy",
        answers="{{ params.answers }}",
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
