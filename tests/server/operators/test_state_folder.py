# SPDX-License-Identifier: Apache-2.0
"""Operators whose connection sets a ``state_folder`` in S3, as Airflow 3.1 and 3.2 require."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from airflow_provider_getimg.operators.video import GenerateVideoOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

MODEL = "seedream-5-lite"
VIDEO_MODEL = "reel-sound"
STARTED = datetime(2026, 11, 29, 16, tzinfo=UTC)
CLEARED = datetime(2026, 11, 29, 18, tzinfo=UTC)


@pytest.fixture
def tries(context, store):
    """Return a function that makes the context of a try on an Airflow without a task state store."""

    def make(try_number: int = 1, max_tries: int = 3, started: datetime = STARTED) -> dict[str, Any]:
        made = context(try_number=try_number, max_tries=max_tries)
        del made["task_state_store"]
        return made | {
            "dag_run": SimpleNamespace(
                start_date=started, run_after=STARTED, clear_number=int(started != STARTED)
            )
        }

    return make


@pytest.fixture
def operators(bucket) -> dict[str, Any]:
    """Return a factory for each kind of operator that generates."""
    return {
        "image": lambda: GenerateImageOperator(task_id="a_task", model=MODEL, prompt="A fox"),
        "batch": lambda: GenerateImagesToS3Operator(
            task_id="a_task",
            requests=[{"prompt": "A fox"}, {"prompt": "A hare"}],
            defaults={"model": MODEL},
            s3_key=f"s3://{bucket}/{{row}}.{{extension}}",
        ),
        "video": lambda: GenerateVideoOperator(
            task_id="a_task", model=VIDEO_MODEL, prompt="A fox", poll_interval=0.05, deferrable=False
        ),
    }


KINDS = pytest.mark.parametrize("kind", ["image", "batch", "video"])


@pytest.fixture
def folder(monkeypatch, getimg_default, seaweedfs, bucket) -> str:
    """Return the state folder that the connection sets."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())
    folder = f"s3://{bucket}/state"
    connection = getimg_default.process.connection(state_folder=folder)
    monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", connection)
    return folder


@KINDS
def test_retry_does_not_pay_again(folder, operators, tries, simulator, kind):
    first = operators[kind]().execute(tries())
    paid = len(simulator.ledger.billed)
    again = operators[kind]().execute(tries(try_number=2))
    assert len(simulator.ledger) == paid == (2 if kind == "batch" else 1)
    if kind == "batch":
        assert again["reused"] == 2
    else:
        assert again["id"] == first["id"]


@KINDS
def test_clear_regenerates_what_was_delivered_unless_a_batch_has_saved_it(
    folder, operators, tries, simulator, kind
):
    operators[kind]().execute(tries())
    paid = len(simulator.ledger.billed)
    operators[kind]().execute(tries(try_number=2, max_tries=4, started=CLEARED))
    # The objects of a batch are still in its bucket.
    assert len(simulator.ledger.billed) == (paid if kind == "batch" else 2 * paid)


@KINDS
def test_request_with_a_lost_response_is_not_sent_again(folder, operators, tries, simulator, kind):
    simulator.faults.add(
        {"on": "video" if kind == "video" else "image", "kind": "drop_after_billing", "times": 9}
    )
    with pytest.raises(errors.GetimgError):
        operators[kind]().execute(tries())
    sent = len(simulator.ledger)
    simulator.faults.clear()
    with pytest.raises(errors.GetimgError, match="may have been billed"):
        operators[kind]().execute(tries(try_number=2))
    assert len(simulator.ledger) == sent


@KINDS
def test_connection_that_is_unreadable_once_does_not_cause_a_second_payment(
    folder, operators, context, store, simulator, kind, monkeypatch
):
    def tries(number: int) -> dict[str, Any]:
        run = SimpleNamespace(start_date=STARTED, run_after=STARTED, clear_number=0)
        return context(try_number=number) | {"task_state_store": store, "dag_run": run}

    operators[kind]().execute(tries(1))
    paid = len(simulator.ledger.billed)
    read, failures = GetimgHook.get_connection, iter([AirflowNotFoundException("a secrets backend is away")])

    def flaky(conn_id: str) -> Any:
        if (failure := next(failures, None)) is not None:
            raise failure
        return read(conn_id)

    monkeypatch.setattr(GetimgHook, "get_connection", staticmethod(flaky))
    with pytest.raises(errors.LedgerError, match=r"can't be read.* It may have been billed\.$"):
        operators[kind]().execute(tries(2))
    operators[kind]().execute(tries(3))
    assert len(simulator.ledger) == paid


@KINDS
def test_unreadable_connection_in_a_retry_reports_a_possible_earlier_bill(
    folder, operators, tries, simulator, kind, monkeypatch
):
    operators[kind]().execute(tries())
    monkeypatch.delenv("AIRFLOW_CONN_GETIMG_DEFAULT")
    with pytest.raises(
        errors.LedgerError,
        match=r"^What an earlier try did is unknown, because its state_folder is: .* It may have been billed\.$",
    ):
        operators[kind]().execute(tries(try_number=2))


@KINDS
def test_retry_whose_connection_lost_its_state_folder_reports_a_possible_earlier_bill(
    folder, operators, tries, simulator, kind, monkeypatch
):
    operators[kind]().execute(tries())
    monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", simulator.process.connection())
    with pytest.raises(
        errors.ConnectionConfigError, match=r"has no task state store.* It may have been billed\.$"
    ):
        operators[kind]().execute(tries(try_number=2))


def test_state_folder_may_name_its_own_aws_connection(monkeypatch, folder, tries, seaweedfs, simulator):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_STATE", seaweedfs.aws_connection())
    monkeypatch.setenv(
        "AIRFLOW_CONN_AWS_DEFAULT",
        json.dumps({"conn_type": "aws", "extra": {"endpoint_url": "http://127.0.0.1:1"}}),
    )
    named = folder.replace("s3://", "s3://aws_state@")
    monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", simulator.process.connection(state_folder=named))
    GenerateImageOperator(task_id="a_task", model=MODEL, prompt="A fox").execute(tries())
    assert len(simulator.ledger.billed) == 1


@KINDS
def test_nothing_is_sent_without_a_task_state_store_or_a_state_folder(
    getimg_default, operators, tries, simulator, kind
):
    with pytest.raises(
        errors.ConnectionConfigError,
        match=r"^Airflow 3\S+ has no task state store, which keeps a retry from paying again, and connection 'getimg_default' has no "
        r"state_folder in its place: set it to an s3://bucket/prefix, or use Airflow 3\.3\. Nothing was billed\.$",
    ):
        operators[kind]().execute(tries())
    assert not simulator.ledger


@KINDS
def test_missing_bucket_is_detected_before_anything_is_sent(
    monkeypatch, folder, operators, tries, simulator, kind
):
    connection = simulator.process.connection(state_folder="s3://no-such-bucket-here/state")
    monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", connection)
    with pytest.raises(
        errors.LedgerError, match=r"there is no bucket 'no-such-bucket-here'.*Nothing was billed"
    ):
        operators[kind]().execute(tries())
    assert not simulator.ledger


@KINDS
def test_invalid_state_folder_does_not_fall_back_to_the_task_state_store(
    monkeypatch, getimg_default, operators, context, seaweedfs, simulator, kind
):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())
    connection = simulator.process.connection(state_folder="a-bucket/state")
    monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", connection)
    with pytest.raises(errors.ConnectionConfigError, match="state_folder must be s3://bucket/prefix"):
        operators[kind]().execute(context())
    assert not simulator.ledger


def test_transfer_needs_neither_a_task_state_store_nor_a_state_folder(
    monkeypatch, getimg_default, context, tries, seaweedfs, bucket
):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())
    response = GenerateImageOperator(task_id="a_task", model=MODEL, prompt="A fox").execute(context())
    save = TransferToS3Operator(
        task_id="save", generation=response, s3_bucket=bucket, s3_key="{generation_id}.{extension}"
    )
    [row] = save.execute(tries())
    assert row["uri"].startswith(f"s3://{bucket}/")
