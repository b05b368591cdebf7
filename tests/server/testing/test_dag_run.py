# SPDX-License-Identifier: Apache-2.0
"""``run_dag`` in this process, with the fixtures that users get."""

from __future__ import annotations

import os
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, Variable, task, task_group
from airflow.sdk import dag as dag_decorator

from airflow_provider_getimg.api.errors import InsufficientBalanceError
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.operators.video import GenerateVideoOperator
from airflow_provider_getimg.testing import GetimgConnection
from airflow_provider_getimg.version_compat import AIRFLOW

START = datetime(2026, 1, 1, tzinfo=UTC)
# Airflow 3.2 and later take a factor.
BACKOFF: Any = 2.0 if AIRFLOW >= (3, 2) else True


def one_image(**fields: Any) -> DAG:
    with DAG("one_image", schedule=None, start_date=START, params={"subject": "a red fox"}) as dag:
        GenerateImageOperator(
            task_id="generate", model="seedream-5-lite", prompt="{{ params.subject }}", **fields
        )
    return dag


def test_return_value_of_a_task_is_its_xcom(run_dag, getimg_simulator, getimg_conn):
    run = run_dag(one_image(), run_conf={"subject": "an owl"})
    assert (run.state, run.states, run.tries) == ("success", {"generate": "success"}, {"generate": 1})
    assert (run.failures, run.errors) == ({}, {})
    [entry] = getimg_simulator.ledger
    assert (entry.prompt, entry.id) == ("an owl", run.xcoms["generate"]["id"])
    assert run.xcom("generate") == run.xcoms["generate"]


def test_failed_task_has_a_message_and_an_exception(run_dag, getimg_simulator, getimg_conn):
    getimg_simulator.balance = 0
    run = run_dag(one_image(), expect="failed")
    assert run.state == "failed"
    assert run.failures["generate"].startswith("getimg.ai refused the request (402 quota_exceeded)")
    assert isinstance(run.errors["generate"], InsufficientBalanceError)
    assert run.xcoms == {}


def test_run_that_ends_in_another_state_than_expected_fails_the_test(run_dag, getimg_simulator, getimg_conn):
    with pytest.raises(pytest.fail.Exception, match="ended as 'success', not as 'failed'"):
        run_dag(one_image(), expect="failed")
    getimg_simulator.faults.insufficient_balance()
    with pytest.raises(
        pytest.fail.Exception, match=r"ended as 'failed', not as 'success'\.\ngenerate: getimg"
    ):
        run_dag(one_image())
    assert run_dag(one_image(), expect=None).state == "success"


def test_deferred_task_is_resumed_within_the_run(run_dag, getimg_simulator, getimg_conn):
    getimg_simulator.settings(video_latency=0.2)
    with DAG("one_video", schedule=None, start_date=START) as dag:
        GenerateVideoOperator(
            task_id="film",
            model="seedance-v1-pro",
            prompt="A red fox",
            labels={"sku": "A-17"},
            deferrable=True,
            poll_interval=0.1,
        )
    response = run_dag(dag).xcoms["film"]
    assert (response["status"], response["request"]["labels"]) == ("completed", {"sku": "A-17"})
    [entry] = getimg_simulator.ledger
    assert (entry.id, entry.outcome) == (response["id"], "delivered")


def test_retries_run_at_once_regardless_of_their_delay(run_dag, getimg_simulator, getimg_conn):
    getimg_simulator.faults.rate_limit(retry_after=3600)
    with one_image() as dag:

        @task(retries=2, retry_delay=timedelta(hours=1), retry_exponential_backoff=BACKOFF)
        def third_time_lucky(ti=None):
            if ti.try_number < 3:
                raise RuntimeError(f"try {ti.try_number}")

        third_time_lucky()
    before = time.monotonic()
    run = run_dag(dag)
    assert time.monotonic() - before < 60
    assert run.tries == {"generate": 2, "third_time_lucky": 3}
    assert (run.failures, run.errors) == ({}, {})


def test_wait_for_retries_waits_for_the_retry_delay(run_dag):
    with DAG("waits", schedule=None, start_date=START) as dag:

        @task(retries=1, retry_delay=timedelta(seconds=2))
        def twice(ti=None):
            if ti.try_number == 1:
                raise RuntimeError
            return time.time() - ti.start_date.timestamp()

        twice()
    before = time.monotonic()
    assert run_dag(dag, wait_for_retries=True).tries == {"twice": 2}
    assert time.monotonic() - before >= 2


def mapped() -> DAG:
    with DAG("mapped", schedule=None, start_date=START) as dag:

        @task
        def numbers() -> list[int]:
            return [0, 1, 2]

        @task
        def nothing() -> list[int]:
            return []

        @task
        def halve(number: int) -> int | None:
            if number == 1:
                raise ValueError("1 is odd")
            return number // 2 or None

        @task
        def skipped(number: int) -> int:
            return number

        @task_group
        def pair(number: int) -> None:
            halve.override(task_id="in_group")(number)

        halve.expand(number=numbers())
        skipped.expand(number=nothing())
        pair.expand(number=[4])
    return dag


def test_results_of_a_mapped_task_are_lists_by_map_index(run_dag):
    run = run_dag(mapped(), expect="failed")
    assert run.states["halve"] == ["success", "failed", "success"]
    assert run.xcoms["halve"] == [None, None, 1]
    assert run.failures == {"halve": [None, "1 is odd", None]}
    assert isinstance(run.errors["halve"][1], ValueError)
    assert run.tries["halve"] == [1, 1, 1]


def test_results_of_a_mapped_task_are_lists_even_for_one_instance_or_none(run_dag):
    run = run_dag(mapped(), expect="failed")
    assert (run.xcoms["pair.in_group"], run.states["pair.in_group"]) == ([2], ["success"])
    assert (run.xcoms["skipped"], run.states["skipped"]) == ([], ["skipped"])
    assert run.xcoms["numbers"] == [0, 1, 2]


def test_xcom_under_another_key_can_be_read_and_a_missing_one_raises_key_error(run_dag):
    with DAG("keys", schedule=None, start_date=START) as dag:

        @task
        def push(ti=None):
            ti.xcom_push("rows", {"count": 7})

        push()
    run = run_dag(dag)
    assert run.xcom("push", "rows") == {"count": 7}
    with pytest.raises(KeyError, match="no XCom of a task 'push'; there are those of: none"):
        run.xcoms["push"]
    with pytest.raises(KeyError, match="no XCom 'columns' of a task 'push'; there are those of: none"):
        run.xcom("push", "columns")


def test_task_with_a_template_error_has_a_failure_message(run_dag):
    with DAG("template", schedule=None, start_date=START) as dag:
        GenerateImageOperator(task_id="generate", model="seedream-5-lite", prompt="{{ missing.field }}")
    assert "'missing' is undefined" in run_dag(dag, expect="failed").failures["generate"]


def test_connections_and_variables_are_set_only_during_the_run(run_dag, getimg_conn, monkeypatch):
    dag = one_image(getimg_conn_id="getimg_prod")
    connection = getimg_conn.json
    monkeypatch.delenv(getimg_conn.variable)
    with dag:

        @task
        def read():
            return Variable.get("bucket")

        read()
    run = run_dag(dag, connections={"getimg_prod": connection}, variables={"bucket": "mine"})
    assert run.xcoms["read"] == "mine"
    assert not [name for name in os.environ if name.startswith(("AIRFLOW_CONN_", "AIRFLOW_VAR_"))]
    message = run_dag(dag, variables={"bucket": "mine"}, expect="failed").failures["generate"]
    assert "getimg_prod" in message


def runs_in_the_database(dag_id: str) -> int:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    with create_session() as session:
        return session.scalar(select(func.count()).where(DagRun.dag_id == dag_id)) or 0


@pytest.mark.parametrize(
    "succeeds", [False, True], ids=["one test fails", "and the next does not wait for it"]
)
def test_runs_of_earlier_tests_are_deleted(run_dag, succeeds):
    # Checked before the run: one that depends on an earlier failed run would wait forever.
    assert runs_in_the_database("past") == 0
    with DAG("past", schedule="@daily", start_date=START, default_args={"depends_on_past": True}) as dag:

        @task
        def work():
            if not succeeds:
                raise RuntimeError

        work()
    day = START + timedelta(days=1 + succeeds)
    run = run_dag(dag, logical_date=day, expect="success" if succeeds else "failed")
    assert run.failures == ({} if succeeds else {"work": "RuntimeError"})
    assert runs_in_the_database("past") == 1


@dag_decorator(schedule=None, start_date=START)
def decorated():
    pass


@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        ("one_image", {}, "run_dag takes a DAG, not a str."),
        (decorated, {}, "run_dag takes a DAG, not a function: call it first."),
        (one_image(), {"expect": "fail"}, "expect must be 'success', 'failed' or None, got 'fail'."),
        (
            one_image(),
            {"logical_date": datetime(2026, 2, 14)},
            "logical_date must be a datetime with a time zone, got datetime.datetime(2026, 2, 14, 0, 0).",
        ),
    ],
    ids=["a name", "a function", "a state", "a naive date"],
)
def test_invalid_argument_is_rejected_with_the_reason(run_dag, given, options, sentence):
    with pytest.raises((TypeError, ValueError)) as error:
        run_dag(given, **options)
    assert str(error.value) == sentence


def test_timeout_of_the_connection_can_be_set(run_dag, getimg_simulator, getimg_conn):
    getimg_conn.timeout = 0.5
    getimg_simulator.faults.timeout()
    run = run_dag(one_image(), expect="failed")
    assert "did not finish the generation within 0.5 seconds" in run.failures["generate"]


def test_no_proxy_contains_the_loopback_hosts_in_both_spellings(getimg_conn):
    assert {"127.0.0.1", "localhost"} <= set(os.environ["NO_PROXY"].split(","))
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("hosts", ["minio.corp, .intern", "*"])
def test_hosts_already_in_no_proxy_still_bypass_the_proxy(getimg_simulator, monkeypatch, name, hosts):
    for either in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(either, raising=False)
    monkeypatch.setenv(name, hosts)
    GetimgConnection(getimg_simulator, monkeypatch)
    for host in ("minio.corp", "127.0.0.1"):
        assert urllib.request.proxy_bypass_environment(host), os.environ[name]
    assert bool(urllib.request.proxy_bypass_environment("api.getimg.ai")) is (hosts == "*")
