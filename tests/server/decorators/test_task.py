# SPDX-License-Identifier: Apache-2.0
"""``@task.getimg_image`` and ``@task.getimg_images_to_s3`` in DAGs that run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.version_compat import AIRFLOW_VERSION, HAS_RETRY_POLICY

START = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = "sketch-mini"
RETRIES = pytest.mark.xfail(
    AIRFLOW_VERSION == "3.1.2",
    reason="it reports the rendered fields of a finished try to a task instance that no longer exists",
    strict=True,
)


def dag(**fields: Any) -> DAG:
    return DAG("taskflow", schedule=None, start_date=START, **fields)


def prompts(simulator: Any) -> list[str]:
    return sorted(entry.prompt for entry in simulator.ledger)


@pytest.mark.parametrize(
    ("returned", "request_"),
    [
        ("A fox", {"model": MODEL, "prompt": "A fox"}),
        (
            {"prompt": "A fox", "labels": {"sku": 7}},
            {"model": MODEL, "prompt": "A fox", "labels": {"sku": 7}},
        ),
        ({"prompt": "A fox", "model": "seedream-5-lite"}, {"model": "seedream-5-lite", "prompt": "A fox"}),
        ("{{ a brace }}", {"model": MODEL, "prompt": "{{ a brace }}"}),
    ],
    ids=["prompt", "dict", "own-model", "no-template"],
)
def test_return_value_of_the_function_becomes_the_request(
    run_dag, getimg_simulator, getimg_conn, returned, request_
):
    with dag() as made:

        @task.getimg_image(model=MODEL)
        def draw() -> dict[str, Any]:
            return returned

        draw()
    run = run_dag(made)
    assert run.xcoms["draw"]["request"] == request_
    assert run.xcoms["draw"]["status"] == "completed"


def test_reference_urls_are_serialized_without_their_signatures(
    run_dag, getimg_simulator, getimg_conn, monkeypatch
):
    shown = []
    monkeypatch.setattr(
        GenerateImageOperator, "execute", lambda self, context: shown.append(self.images.serialize())
    )
    with dag() as made:

        @task.getimg_image(model=MODEL)
        def draw() -> dict[str, Any]:
            return {"prompt": "A fox", "images": ["https://a.test/x.png?sig=secret"]}

        draw()
    run_dag(made)
    assert shown == [["https://a.test/x.png?..."]]


def test_function_receives_its_arguments_and_the_context(run_dag, getimg_simulator, getimg_conn):
    with dag(params={"style": "ink"}) as made:

        @task
        def subject() -> str:
            return "owl"

        @task.getimg_image(model="{{ 'sketch' }}-mini")
        def draw(subject: str, params: Any = None) -> str:
            return f"An {subject} in {params['style']}"

        draw(subject())
    assert run_dag(made).xcoms["draw"]["request"] == {"model": MODEL, "prompt": "An owl in ink"}


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (None, "The function of @task.getimg_image must return a prompt or a dict, got None."),
        ({"prompt": "A fox", "colour": "red"}, "'colour' is not a known field."),
        ("", "prompt must not be empty"),
    ],
    ids=["none", "unknown-field", "empty"],
)
def test_return_value_that_is_not_a_request_fails_before_anything_is_sent(
    run_dag, getimg_simulator, getimg_conn, returned, sentence
):
    with dag() as made:

        @task.getimg_image(model=MODEL)
        def draw() -> Any:
            return returned

        draw()
    run = run_dag(made, expect="failed")
    assert isinstance(run.errors["draw"], InvalidInputError)
    assert run.failures["draw"].startswith(sentence)
    assert not getimg_simulator.ledger


@RETRIES
def test_error_in_a_later_try_reports_that_an_earlier_one_may_have_been_billed(
    run_dag, getimg_simulator, getimg_conn
):
    with dag() as made:

        @task.getimg_image(model=MODEL, on_unknown_outcome="resubmit")
        def draw(ti: Any = None) -> str | None:
            return "A fox" if ti.try_number == 1 else None

        draw()
    getimg_simulator.faults.add({"on": "image", "kind": "drop_after_billing"})
    run = run_dag(made, expect="failed")
    assert run.failures["draw"] == (
        "An earlier request may have been billed. The function of @task.getimg_image must return a prompt or a dict, got None."
    )


@RETRIES
def test_mapped_task_generates_an_image_per_value_and_retries_a_429(run_dag, getimg_simulator, getimg_conn):
    with dag() as made:

        @task.getimg_image(model=MODEL, rate_limit_wait=0)
        def draw(animal: str, style: str) -> str:
            return f"A {animal} in {style}"

        draw.partial(style="ink").expand(animal=["fox", "hare"])
    limited = {"on": "image", "kind": "status", "status": 429, "headers": {"retry-after": "1"}}
    getimg_simulator.faults.add(limited)
    run = run_dag(made)
    assert [response["request"]["prompt"] for response in run.xcoms["draw"]] == [
        "A fox in ink",
        "A hare in ink",
    ]
    assert sorted(run.tries["draw"]) == [1, 2]


@pytest.mark.parametrize("how", ["expand", "expand_kwargs", "called"])
@pytest.mark.parametrize(
    ("default_args", "own", "retries"),
    [({}, {}, 3), ({"retries": 5}, {}, 5), ({"retries": 5}, {"retries": 1}, 1)],
    ids=["provider", "default-args", "own"],
)
def test_retries_and_retry_policy_are_those_of_the_operator_whether_called_or_mapped(
    how, default_args, own, retries
):
    with dag(default_args=default_args) as made:

        @task.getimg_image(model=MODEL, **own)
        def draw(animal: str) -> str:
            return animal

        if how == "called":
            draw("fox")
        elif how == "expand":
            draw.expand(animal=["fox"])
        else:
            draw.expand_kwargs([{"animal": "fox"}])
    operator = made.get_task("draw")
    assert operator.retries == retries
    # Before Airflow 3.3, a mapped task creates its operator, with its retry policy, only at run time.
    if HAS_RETRY_POLICY or how == "called":
        assert operator.retry_policy is RETRY_POLICY


def test_batch_is_generated_from_the_list_that_the_function_returns(
    monkeypatch, run_dag, getimg_simulator, getimg_conn, seaweedfs, bucket
):
    with dag() as made:

        @task.getimg_images_to_s3(
            s3_key=f"s3://{bucket}/{{row}}.{{extension}}", defaults={"model": MODEL}, max_cost="1"
        )
        def draw(animals: list[str]) -> list[Any]:
            return [{"prompt": f"A {animals[0]}", "labels": {"sku": "A-17"}}, animals[1]]

        draw(["fox", "hare"])
    run = run_dag(made, connections={"aws_default": seaweedfs.aws_connection()})
    assert run.xcoms["draw"]["uris"] == [f"s3://{bucket}/0.jpg", f"s3://{bucket}/1.jpg"]
    assert prompts(getimg_simulator) == ["A fox", "hare"]


def test_mapped_batch_saves_an_image_per_value_and_keeps_the_default_retries(
    run_dag, getimg_simulator, getimg_conn, seaweedfs, bucket
):
    with dag() as made:

        @task.getimg_images_to_s3(s3_key=f"s3://{bucket}/{{animal}}.{{extension}}", defaults={"model": MODEL})
        def draw(animal: str) -> list[Any]:
            return [{"prompt": animal, "labels": {"animal": animal}}]

        draw.expand(animal=["fox", "hare"])
    run = run_dag(made, connections={"aws_default": seaweedfs.aws_connection()})
    assert [summary["saved"] for summary in run.xcoms["draw"]] == [1, 1]
    assert made.get_task("draw").retries == 3


def test_batch_function_that_returns_no_list_is_rejected(
    run_dag, getimg_simulator, getimg_conn, seaweedfs, bucket
):
    with dag() as made:

        @task.getimg_images_to_s3(s3_key=f"s3://{bucket}/{{row}}.{{extension}}")
        def draw() -> Any:
            return None

        draw()
    run = run_dag(made, expect="failed", connections={"aws_default": seaweedfs.aws_connection()})
    assert run.failures["draw"].startswith("requests must be a list of dicts")
