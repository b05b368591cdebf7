# SPDX-License-Identifier: Apache-2.0
"""DAGs that the tests of paying once run: what they ask, and what goes wrong, is in the run's conf."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task
from line_count import LineCount

from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator
from airflow_provider_getimg.version_compat import HAS_RETRY_POLICY, RetryDecision, RetryPolicy

START = datetime(2026, 1, 1)
MODEL = "seedream-5-lite"
QUICK = timedelta(seconds=1)


class KilledGenerateImageOperator(GenerateImageOperator):
    """
    Ends the process of the first tries, ``deaths`` of them, with SIGKILL when it comes to ``moment``.

    That is a line's number or its place, see :class:`LineCount`. Lines count from the start of ``execute`` in the provider
    and, for the push of the XCom, in Airflow's task runner. ``moment`` 0 kills nothing: the file ``witness`` gets the place
    of each line instead; for any other moment, the place of death.
    """

    template_fields = (*GenerateImageOperator.template_fields, "moment", "witness")

    def __init__(self, *, moment: Any, witness: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moment = moment
        self.witness = witness

    def execute(self, context: Any) -> Any:
        if context["ti"].try_number <= context["params"]["deaths"]:
            LineCount(self.moment, Path(self.witness)).start()
        return super().execute(context)


class Unpushed:
    """A task instance whose XCom is out of reach."""

    def __init__(self, ti: Any) -> None:
        self._ti = ti

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ti, name)

    def xcom_push(self, key: str, value: Any) -> None:
        raise ConnectionError("XCom is out of reach")


class AlwaysRetry(RetryPolicy):
    """A user's own policy that retries everything."""

    def evaluate(self, exception: Any, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        return RetryDecision.retry(QUICK, reason="always")

    def serialize(self) -> dict[str, Any]:
        return {}


with DAG(
    "paying_once",
    schedule=None,
    start_date=START,
    params={
        "prompt": "A red fox",
        "on_unknown_outcome": "fail",
        "max_cost": "1000",
        "rate_limit_wait": 0,
        "conn": "getimg_default",
    },
):
    GenerateImageOperator(
        task_id="generate",
        model=MODEL,
        prompt="{{ params.prompt }}",
        on_unknown_outcome="{{ params.on_unknown_outcome }}",
        max_cost="{{ params.max_cost }}",
        rate_limit_wait="{{ params.rate_limit_wait }}",
        getimg_conn_id="{{ params.conn }}",
        retries=2,
        retry_delay=QUICK,
    )

with DAG(
    "paying_once_mapped",
    schedule=None,
    start_date=START,
    params={"prompts": ["one", "two", "three"], "on_unknown_outcome": "fail", "conn": "getimg_default"},
):

    @task
    def prompts(params: dict | None = None) -> list[str]:
        return (params or {})["prompts"]

    generated = GenerateImageOperator.partial(
        task_id="generate",
        model=MODEL,
        on_unknown_outcome="{{ params.on_unknown_outcome }}",
        getimg_conn_id="{{ params.conn }}",
        rate_limit_wait=0,
        retries=2,
        retry_delay=QUICK,
    ).expand(prompt=prompts())

    TransferToS3Operator(
        task_id="save",
        generation=generated.output,
        s3_bucket="{{ var.value.getimg_bucket }}",
        s3_key="paying_once/{{ run_id }}/{generation_id}-{index}.{extension}",
        retries=0,
    )

with DAG(
    "killed",
    schedule=None,
    start_date=START,
    params={"moments": [0], "witnesses": "/tmp", "on_unknown_outcome": "fail", "deaths": 1},
    max_active_tasks=4,
):

    @task
    def moments(params: dict | None = None) -> list[dict[str, Any]]:
        given = params or {}
        return [
            {
                "moment": moment,
                "witness": f"{given['witnesses']}/{index}",
                "prompt": f"moment {moment} ({index})",
            }
            for index, moment in enumerate(given["moments"])
        ]

    KilledGenerateImageOperator.partial(
        task_id="generate",
        model=MODEL,
        on_unknown_outcome="{{ params.on_unknown_outcome }}",
        retries=1,
        retry_delay=QUICK,
    ).expand_kwargs(moments())

with DAG(
    "fails_after_the_response", schedule=None, start_date=START, params={"fails": 1, "prompt": "A red fox"}
):

    class FailsAfterwards(GenerateImageOperator):
        """Fails once the response is in XCom, in as many tries as the run's conf says."""

        def execute(self, context: Any) -> Any:
            response = super().execute(context)
            if context["ti"].try_number <= context["params"]["fails"]:
                raise RuntimeError("after the response")
            return response

    FailsAfterwards(
        task_id="generate", model=MODEL, prompt="{{ params.prompt }}", retries=2, retry_delay=QUICK
    )
    FailsAfterwards(
        task_id="changes",
        model=MODEL,
        prompt="{{ params.prompt }} {{ ti.try_number }}",
        retries=2,
        retry_delay=QUICK,
    )

with DAG("push_fails", schedule=None, start_date=START, params={"fails": 1}):

    class FailsToPush(GenerateImageOperator):
        """Can't push its response, in as many tries as the run's conf says."""

        def execute(self, context: Any) -> Any:
            if context["ti"].try_number <= context["params"]["fails"]:
                context = {**context, "ti": Unpushed(context["ti"])}
            return super().execute(context)

    FailsToPush(task_id="generate", model=MODEL, prompt="A red fox", retries=1, retry_delay=QUICK)

with DAG("expired_on_retry", schedule=None, start_date=START, params={"on_unknown_outcome": "fail"}):
    # The files live for a second (the test sees to it), the retry comes later.
    FailsAfterwards(
        task_id="generate",
        model=MODEL,
        prompt="short-lived",
        on_unknown_outcome="{{ params.on_unknown_outcome }}",
        retries=2,
        retry_delay=timedelta(seconds=2),
        params={"fails": 1},
    )

with DAG(
    "users_own",
    schedule=None,
    start_date=START,
    default_args={"retries": 1, "retry_delay": QUICK, "on_unknown_outcome": "resubmit"},
):
    GenerateImageOperator(task_id="by_default_args", model=MODEL, prompt="default args")
    GenerateImageOperator(
        task_id="no_policy", model=MODEL, prompt="no policy", on_unknown_outcome="fail", retry_policy=None
    )
    GenerateImageOperator(
        task_id="no_retries", model=MODEL, prompt="no retries", rate_limit_wait=0, retries=0
    )
    if HAS_RETRY_POLICY:
        GenerateImageOperator(
            task_id="own_policy",
            model=MODEL,
            prompt="own policy",
            on_unknown_outcome="fail",
            retry_policy=AlwaysRetry(),
            retries=2,
        )
        GenerateImageOperator.partial(
            task_id="mapped_own_policy", model=MODEL, on_unknown_outcome="fail", retry_policy=AlwaysRetry()
        ).expand(prompt=["mapped own policy"])
