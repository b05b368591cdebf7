# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
import signal
import threading
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import time_machine
from airflow.providers.common.compat.sdk import AirflowTaskTimeout
from airflow.sdk import DAG

from airflow_provider_getimg.api import client, errors
from airflow_provider_getimg.api.reading import Reader
from airflow_provider_getimg.durable import reference_images
from airflow_provider_getimg.durable.ledger import KEY
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.retry import RETRY_POLICY, GetimgRetryPolicy
from airflow_provider_getimg.version_compat import RetryAction
from tests.support.airflow_internals import serialize_template_field
from tests.support.s3_faults import S3FaultProxy

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 64


def operator(**fields: Any) -> GenerateImageOperator:
    return GenerateImageOperator(
        task_id="generate",
        **({"model": "seedream-5-lite", "prompt": "A red fox", "rate_limit_wait": 0} | fields),
    )


def test_response_is_returned_as_plain_json(getimg_default, context):
    response = operator(aspect_ratio="16:9", output_format="png").execute(context())
    assert response == json.loads(json.dumps(response))
    assert response["status"] == "completed"
    assert response["data"][0]["mime_type"] == "image/png"
    assert response["data"][0]["width"] > response["data"][0]["height"]
    assert response["usage"]["total_cost"] == 0.04


def test_response_includes_the_request_without_reference_images(getimg_default, context):
    url = "https://a.test/x.png?sig=secret-of-the-reference"
    response = operator(images=[url], labels={"sku": "A-17", "size": Decimal(3)}).execute(context())
    assert response["request"] == {
        "model": "seedream-5-lite",
        "prompt": "A red fox",
        "labels": {"sku": "A-17", "size": 3},
    }


def test_retry_with_changed_labels_returns_the_new_labels_and_does_not_pay_again(getimg_default, context):
    operator(labels={"sku": "A-17"}, do_xcom_push=False).execute(context())
    assert operator(labels={"sku": "B-02"}).execute(context(2))["request"]["labels"] == {"sku": "B-02"}
    assert len(getimg_default.ledger) == 1


def test_cost_is_logged_without_the_signed_url(getimg_default, context, capsys):
    response = operator().execute(context())
    log = capsys.readouterr().out
    deleted = response["data"][0]["deletes_at"][:19]
    assert (
        f"Generated {response['id']} with model seedream-5-lite: 1 file, cost 0.04 USD, to be deleted at {deleted}"
        in log
    )
    assert "sig=" not in log
    assert response["data"][0]["url"] not in log


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": ""}, "prompt must not be empty."),
        ({"prompt": "x" * 4097}, "prompt must have at most 4096 characters, got 4097."),
        ({"prompt": None}, "prompt is missing."),
        ({"model": ""}, "model must not be empty."),
        ({"output_format": "gif"}, "output_format must be 'png', 'jpeg' or 'webp', got 'gif'."),
        ({"images": ["https://a.test/x.png"] * 65}, "images must contain at most 64 images, got 65."),
        (
            {"images": "https://a.test/x.png"},
            "images must be a list of URLs, or of {'url': ..., 'role': ...}, got 'https://",
        ),
        ({"images": [7]}, "images[0] must be a URL, or {'url': ..., 'role': ...}, got 7."),
        ({"images": [None]}, "images[0] must be a URL, or {'url': ..., 'role': ...}, got None."),
        ({"images": [{"url": "s3://b/k", "roll": "x"}]}, "images[0].roll is not a known field."),
        ({"prompt": "None"}, "prompt must be a description, got 'None': a template rendered nothing."),
        ({"labels": ["A-17"]}, "labels must be a dict of your own names, such as {'sku': 'A-17'}, got"),
        ({"prompt": "A fox\0"}, r"prompt must not contain NUL characters, got 'A fox\x00'."),
        ({"labels": {"__id__": "x"}}, "The name of a label must not begin with '__', got '__id__'."),
        (
            {"labels": {"sku": "a\0"}},
            r"labels['sku'] must be a string, a finite number, a date, a time, a UUID or None, got 'a\x00'.",
        ),
        (
            {"labels": {"sku": "\ud83d"}},
            "labels['sku'] must be a string, a finite number, a date, a time, a UUID or None, got ",
        ),
        ({"labels": {"model": "x"}}, "labels must not contain 'model', which is a built-in placeholder."),
        ({"max_cost": ""}, "max_cost must be an amount in USD, 0 or more, such as '0.05', got ''."),
        ({"max_cost": "1_0"}, "max_cost must be an amount in USD, 0 or more, such as '0.05', got '1_0'."),
        (
            {"images": ["http://a.test/x.png?sig=secret"]},
            "images[0] must be an https:// URL, the s3://bucket/key of an object, or a data URL (data:image/png;base64,... or "
            "the same with jpeg or webp), got 'http://a.test/x.png?...'.",
        ),
        (
            {"images": [{"url": "gs://bucket/x.png"}]},
            "images[0] must be an https:// URL, the s3://bucket/key of an object, or",
        ),
        (
            {"on_unknown_outcome": "retry"},
            "on_unknown_outcome must be 'fail' or 'resubmit', got 'retry'.",
        ),
        ({"max_cost": "cheap"}, "max_cost must be an amount in USD, 0 or more, such as '0.05', got 'cheap'."),
        ({"max_cost": -1}, "max_cost must be an amount in USD, 0 or more, such as '0.05', got -1."),
        (
            {"rate_limit_wait": "long"},
            "rate_limit_wait must be a number of seconds, 0 or more, got 'long'.",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_input_is_rejected_before_any_request(getimg_default, context, store, fields, sentence):
    with pytest.raises(errors.InvalidInputError) as error:
        operator(**fields).execute(context())
    assert str(error.value).startswith(sentence)
    assert str(error.value).endswith(" Nothing was billed.")
    assert not getimg_default.ledger
    assert store.values == {}


def test_input_error_in_a_retry_begins_with_the_unsaved_generation_already_billed(getimg_default, context):
    def undelivered(**_: Any) -> None:
        raise ConnectionError("the API server is away")

    first = context()
    first["ti"].xcom_push = undelivered
    with pytest.raises(ConnectionError):
        operator().execute(first)
    with pytest.raises(errors.InvalidInputError) as error:
        operator(max_cost="cheap").execute(context(try_number=2))
    [paid] = getimg_default.ledger.billed
    assert str(error.value).startswith("Generation ")
    assert "was billed (0.04 USD) and is not saved. max_cost must be" in str(error.value)
    assert operator().execute(context(try_number=3))["usage"]["total_cost"] == paid.billed
    assert len(getimg_default.ledger) == 1


@pytest.mark.parametrize("on_record", [True, False], ids=["sent", "unreadable"])
def test_input_error_in_a_retry_reports_that_the_earlier_request_may_have_been_billed(
    getimg_default, context, store, on_record
):
    getimg_default.faults.add({"on": "image", "kind": "drop_after_billing"})
    with pytest.raises(errors.OutcomeUnknownError):
        operator().execute(context())
    store.broken = not on_record
    with pytest.raises(
        errors.InvalidInputError, match=r"^An earlier request may have been billed\. max_cost must be"
    ):
        operator(max_cost="cheap").execute(context(try_number=2))


def test_references_with_and_without_a_role_are_accepted(getimg_default, context):
    images = ["https://a.test/x.png", {"url": "https://a.test/y.png", "role": "reference_image"}]
    assert operator(images=images).execute(context())["status"] == "completed"


class TestReferencesInS3:
    """``s3://`` references, read from a real S3 server and sent as data URLs."""

    @pytest.fixture(autouse=True)
    def _aws(self, monkeypatch, seaweedfs):
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())

    def test_object_is_read_and_sent_as_a_data_url(self, getimg_default, context, seaweedfs, bucket):
        seaweedfs.client().put_object(Bucket=bucket, Key="p.png", Body=PNG)
        images = reference_images.as_written([f"s3://{bucket}/p.png"])
        [sent] = reference_images.resolve(images, seaweedfs.client)
        assert sent["url"].startswith("data:image/png;base64,iVBORw0KGgo")
        assert sent["role"] == "reference_image"
        assert operator(images=[f"s3://{bucket}/p.png"]).execute(context())["status"] == "completed"

    @pytest.mark.parametrize("change", ["deleted", "replaced"])
    def test_retry_returns_the_paid_response_if_the_object_was_deleted_or_replaced(
        self, getimg_default, context, seaweedfs, bucket, change
    ):
        seaweedfs.client().put_object(Bucket=bucket, Key="p.png", Body=PNG)
        first = operator(images=[f"s3://{bucket}/p.png"]).execute(context())
        if change == "deleted":
            seaweedfs.client().delete_object(Bucket=bucket, Key="p.png")
        else:
            seaweedfs.client().put_object(Bucket=bucket, Key="p.png", Body=PNG + b"new")
        assert operator(images=[f"s3://{bucket}/p.png"]).execute(context(try_number=2)) == first
        assert len(getimg_default.ledger) == 1

    def test_unreachable_store_raises_an_error_that_is_retried(self, getimg_default, context, monkeypatch):
        monkeypatch.setenv(
            "AIRFLOW_CONN_AWS_DEFAULT",
            '{"conn_type": "aws", "login": "x", "password": "x", "extra": {"endpoint_url": "http://127.0.0.1:1", '
            '"region_name": "us-east-1", "config_kwargs": {"retries": {"total_max_attempts": 1}}}}',
        )
        with pytest.raises(
            errors.UnavailableError, match=r"can't be read from S3: .*\. Nothing was billed"
        ) as error:
            operator(images=["s3://bucket/p.png"]).execute(context())
        assert RETRY_POLICY.evaluate(error.value, 1, 3).action is RetryAction.DEFAULT

    @pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "RequestTimeTooSkewed")])
    def test_passing_refusal_by_the_store_raises_an_error_that_is_retried(
        self, getimg_default, context, seaweedfs, bucket, monkeypatch, status, code
    ):
        with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
            monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", proxy.aws_connection(seaweedfs.aws_connection()))
            proxy.set_faults([{"kind": "status", "status": status, "code": code, "operation": "GetObject"}])
            with pytest.raises(errors.UnavailableError, match=f"can't be read from S3: .*{code}"):
                operator(images=[f"s3://{bucket}/p.png"]).execute(context())

    @pytest.mark.parametrize(
        ("key", "body", "sentence"),
        [
            ("missing.png", None, "can't be read from S3: An error occurred (NoSuchKey)"),
            (
                "text.png",
                b"<html>",
                "must be a PNG, JPEG or WebP image, but its first bytes are of none of these.",
            ),
            (
                "large.png",
                PNG + b"\0" * (10 * 1024 * 1024),
                "must be at most 10485760 bytes (10 MiB), got 10485832.",
            ),
        ],
        ids=["missing", "no image", "too large"],
    )
    def test_object_that_cannot_be_sent_is_named_in_the_error(
        self, getimg_default, context, seaweedfs, bucket, key, body, sentence
    ):
        if body is not None:
            seaweedfs.client().put_object(Bucket=bucket, Key=key, Body=body)
        with pytest.raises(errors.InvalidInputError) as error:
            operator(images=[f"s3://{bucket}/{key}"]).execute(context())
        assert str(error.value).startswith(f"images[0] (s3://{bucket}/{key}) {sentence}")
        assert not getimg_default.ledger

    def test_objects_that_together_exceed_the_request_size_are_rejected(
        self, getimg_default, context, seaweedfs, bucket
    ):
        seaweedfs.client().put_object(Bucket=bucket, Key="9.png", Body=PNG + b"\0" * (9 * 1024 * 1024))
        with pytest.raises(
            errors.InvalidInputError, match=r"images\[2\] .* must leave the request within 26214400"
        ):
            operator(images=[f"s3://{bucket}/9.png"] * 3).execute(context())
        assert not getimg_default.ledger

    def test_s3_reference_without_a_key_is_rejected(self, getimg_default, context):
        with pytest.raises(
            errors.InvalidInputError,
            match=r"^images\[0\] must be the s3://bucket/key of an object, got 's3://bucket'\.",
        ):
            operator(images=["s3://bucket"]).execute(context())


def test_second_try_of_a_completed_request_does_not_pay_again(getimg_default, context, capsys):
    first = operator().execute(context(try_number=1))
    second = operator().execute(context(try_number=2))
    assert second == first
    assert len(getimg_default.ledger) == 1
    assert f"Reusing generation {first['id']} from try 1 (requested 0:00:0" in capsys.readouterr().out


def test_cleared_task_pays_for_a_new_image(getimg_default, context):
    first = operator().execute(context(try_number=1, max_tries=3))
    second = operator().execute(context(try_number=2, max_tries=4))
    assert second["id"] != first["id"]
    assert len(getimg_default.ledger) == 2


def test_clear_that_does_not_change_max_tries_pays_nothing_and_the_next_clear_pays(getimg_default, context):
    # The DAG had 3 retries, now has 2, and the task is cleared after its first try: 1 + 2 is 3 again.
    first = operator().execute(context(try_number=1, max_tries=3))
    assert operator(retries=2).execute(context(try_number=2, max_tries=3)) == first
    # Cleared again, after the second try.
    assert operator(retries=2).execute(context(try_number=3, max_tries=4))["id"] != first["id"]
    assert len(getimg_default.ledger) == 2


def test_changed_request_pays_for_a_new_image(getimg_default, context):
    first = operator().execute(context())
    second = operator(prompt="A blue fox").execute(context(try_number=2))
    assert second["id"] != first["id"]


def test_retry_after_a_lost_response_fails_without_sending_a_request(getimg_default, context):
    getimg_default.faults.add({"on": "image", "kind": "drop_after_billing"})
    with pytest.raises(errors.OutcomeUnknownError, match="broke after the generation was sent"):
        operator().execute(context())
    with pytest.raises(errors.OutcomeUnknownError) as error:
        operator().execute(context(try_number=2))
    message = str(error.value)
    assert message.startswith("Try 1 sent this request at 20")
    assert "broke after the generation was sent" in message
    assert "clear the task" in message
    assert "on_unknown_outcome='resubmit'" in message
    assert message.endswith("It may have been billed.")
    assert len(getimg_default.ledger) == 1


@pytest.mark.parametrize("status", [400, 402, 429])
def test_request_that_was_not_billed_is_sent_again_by_a_retry(getimg_default, context, store, status):
    getimg_default.faults.add({"on": "image", "kind": "status", "status": status})
    with pytest.raises(errors.GetimgError):
        operator().execute(context())
    assert store.values == {}
    assert operator().execute(context(try_number=2))["status"] == "completed"


@pytest.mark.parametrize(
    ("try_number", "bill"),
    [(1, "Nothing was billed"), (2, "It may have been billed")],
    ids=["first", "later"],
)
def test_nothing_is_sent_if_the_ledger_cannot_be_read(getimg_default, context, store, try_number, bill):
    store.broken = True
    with pytest.raises(errors.GetimgError, match=rf"could not be read: the API server is away\. {bill}"):
        operator().execute(context(try_number))
    assert not getimg_default.ledger


@pytest.mark.parametrize(
    "url",
    ["https://a.test/x.png?X-Amz-Signature=of-the-reference", "s3://a/{b}?X-Amz-Signature=of-the-reference"],
    ids=["https", "s3"],
)
@pytest.mark.parametrize(
    "kind",
    [str, lambda url: [url], lambda url: [{"url": url, "role": "first_frame"}]],
    ids=["text", "list", "roles"],
)
def test_signatures_of_reference_urls_are_removed_from_rendered_fields(url, kind):
    # Airflow 3.1.2 does not mask rendered fields.
    task = operator(images=kind(url))
    task.render_template_fields({})
    shown = serialize_template_field(task.images, "images")
    assert url.partition("?")[0] in json.dumps(shown)
    assert "of-the-reference" not in json.dumps(shown)


def test_request_with_rendered_references_completes(getimg_default, context):
    task = operator(images=["https://a.test/x.png?X-Amz-Signature=rendered-and-sent"])
    task.render_template_fields({})
    assert task.execute(context())["status"] == "completed"


def test_retry_returns_the_recorded_response_without_a_connection(getimg_default, context, monkeypatch):
    paid = operator(do_xcom_push=False).execute(context())
    monkeypatch.delenv("AIRFLOW_CONN_GETIMG_DEFAULT")
    assert operator().execute(context(2))["id"] == paid["id"]
    assert len(getimg_default.ledger) == 1


def test_nothing_is_sent_if_the_ledger_cannot_be_written(getimg_default, context, store, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("the API server is away")

    monkeypatch.setattr(store, "set", refuse)
    with pytest.raises(errors.GetimgError, match=r"could not be written: .* Nothing was billed"):
        operator().execute(context())
    assert not getimg_default.ledger


def test_intent_that_was_written_but_reported_as_failed_is_rolled_back(
    getimg_default, context, store, monkeypatch
):
    write, failures = store.set, iter([True])

    def fail_once(key: str, value: Any, **kwargs: Any) -> None:
        write(key, value, **kwargs)
        if next(failures, False):
            raise ConnectionError("502 after the commit")

    monkeypatch.setattr(store, "set", fail_once)
    with pytest.raises(errors.LedgerError, match=r"could not be written: .* Nothing was billed"):
        operator().execute(context())
    assert operator().execute(context(try_number=2))["status"] == "completed"
    assert len(getimg_default.ledger) == 1


def test_failed_intent_write_keeps_the_entry_of_an_earlier_try_that_is_still_running(
    getimg_default, context, store, monkeypatch
):
    write = store.set

    def fail(key: str, value: Any, **kwargs: Any) -> None:
        # Meanwhile the first try, which was presumed dead, has received its response.
        store.values[key] = json.dumps(paid)
        monkeypatch.setattr(store, "set", write)
        raise ConnectionError("503")

    first = operator().execute(context())
    paid = store.get(KEY) | {"delivered": False}
    store.values.clear()
    monkeypatch.setattr(store, "set", fail)
    with pytest.raises(errors.LedgerError):
        operator().execute(context(try_number=2))
    assert operator().execute(context(try_number=3)) == first
    assert len(getimg_default.ledger) == 1


def test_paid_response_is_returned_even_if_it_cannot_be_recorded(
    getimg_default, context, store, monkeypatch, capsys
):
    write = store.set

    def refuse_the_response(key: str, value: Any, **kwargs: Any) -> None:
        if value["state"] == "completed":
            raise ConnectionError(f"cannot store {value['response']['data'][0]['url']}")
        write(key, value, **kwargs)

    monkeypatch.setattr(store, "set", refuse_the_response)
    response = operator().execute(context())
    assert response["status"] == "completed"
    log = capsys.readouterr().out
    assert f"The paid response {response['id']} could not be recorded" in log
    assert "sig=" not in log


def test_recording_a_paid_response_is_retried_after_a_failure(getimg_default, context, store, monkeypatch):
    write, failures = store.set, iter([True])

    def refuse_once(key: str, value: Any, **kwargs: Any) -> None:
        if value["state"] == "completed" and next(failures, False):
            raise ConnectionError("away")
        write(key, value, **kwargs)

    monkeypatch.setattr(store, "set", refuse_once)
    response = operator().execute(context())
    assert store.get(KEY)["response"]["id"] == response["id"]


@pytest.mark.parametrize(
    ("on_unknown_outcome", "paid"), [("fail", 1), ("resubmit", 2)], ids=["fail", "resubmit"]
)
def test_recorded_response_is_not_returned_once_its_files_are_deleted(
    getimg_default, context, on_unknown_outcome, paid, capsys
):
    first = operator().execute(context())
    retry = operator(on_unknown_outcome=on_unknown_outcome)
    getimg_default.faults.add({"on": "download", "kind": "file", "status": 410, "times": 9})
    with time_machine.travel(timedelta(days=400), tick=True):
        if on_unknown_outcome == "fail":
            with pytest.raises(errors.PaidFilesGoneError) as error:
                retry.execute(context(try_number=2))
            assert str(error.value).startswith(
                f"Try 1 generated and paid for {first['id']} (0.04 USD), and its files are gone"
            )
            assert str(error.value).endswith("It was billed.")
            assert (error.value.cost, error.value.generation_ids) == (Decimal("0.04"), (first["id"],))
        else:
            assert retry.execute(context(try_number=2))["id"] != first["id"]
            assert "its files are gone" in capsys.readouterr().out
    assert len(getimg_default.ledger) == paid


def test_response_with_files_still_served_is_returned_despite_a_fast_worker_clock(getimg_default, context):
    first = operator().execute(context())
    with time_machine.travel(timedelta(days=400), tick=True):
        assert operator().execute(context(try_number=2)) == first
    assert len(getimg_default.ledger) == 1


def test_ledger_entry_with_a_field_of_a_later_version_is_still_used(getimg_default, context, store):
    first = operator().execute(context())
    store.set(KEY, {**store.get(KEY), "a_field_of_a_later_version": 1})
    assert operator().execute(context(try_number=2)) == first


@pytest.mark.parametrize(
    "entry",
    [
        {"version": 99},
        {"state": "submitted"},
        "submitted",
        [1],
        {"state": "submitted", "fingerprint": "x", "epoch": "3", "try_number": 1, "started_at": "2026-01-01"},
        {"state": "completed", "fingerprint": "x", "epoch": 3, "try_number": 1, "started_at": "2026-01-01"},
        {"state": "submitted", "fingerprint": "x", "epoch": 3, "try_number": 1, "started_at": "then"},
        *(
            {
                "state": "submitted",
                "fingerprint": "x",
                "epoch": 3,
                "try_number": 1,
                "started_at": "2026-01-01",
                "replaced": replaced,
            }
            for replaced in (
                ["req-1"],
                [["req-1", "a lot"]],
                [["req-1", "NaN"]],
                [["req-1", None]],
                [[1, "0.04"]],
            )
        ),
    ],
    ids=str,
)
def test_unreadable_ledger_entry_is_an_error_and_nothing_is_sent(getimg_default, context, store, entry):
    store.set(KEY, entry)
    with pytest.raises(
        errors.LedgerError, match=r"What an earlier try did is unknown.*It may have been billed"
    ):
        operator().execute(context())
    assert not getimg_default.ledger


def test_reference_with_a_new_signature_is_the_same_request(getimg_default, context):
    getimg_default.faults.add({"on": "image", "kind": "drop_after_billing"})
    with pytest.raises(errors.OutcomeUnknownError):
        operator(images=["https://a.test/x.png?X-Amz-Signature=one"]).execute(context())
    with pytest.raises(errors.OutcomeUnknownError, match="Try 1 sent this request"):
        operator(images=["https://a.test/x.png?X-Amz-Signature=two"]).execute(context(try_number=2))
    assert len(getimg_default.ledger) == 1


def test_rate_limited_resubmission_does_not_clear_an_unknown_outcome(getimg_default, context):
    getimg_default.faults.add(
        {"on": "image", "kind": "status", "status": 500}, {"on": "image", "kind": "status", "status": 429}
    )
    resubmits = operator(on_unknown_outcome="resubmit")
    with pytest.raises(errors.OutcomeUnknownError):
        resubmits.execute(context())
    with pytest.raises(errors.RateLimitError):
        operator(on_unknown_outcome="resubmit").execute(context(try_number=2))
    with pytest.raises(errors.OutcomeUnknownError, match="Try 1 sent this request"):
        operator().execute(context(try_number=3))


@pytest.mark.parametrize(
    ("fault", "fields", "error"),
    [
        ({"status": 402}, {}, errors.InsufficientBalanceError),
        ({"status": 429}, {}, errors.RateLimitError),
        (None, {"max_cost": "0.01"}, errors.CostLimitError),
    ],
    ids=["402", "429", "max_cost"],
)
@pytest.mark.parametrize("gone", [True, False], ids=["gone", "unknown"])
def test_failed_resubmission_reports_the_bill_of_the_request_it_replaces(
    getimg_default, context, store, fault, fields, error, gone
):
    if gone:
        response = operator().execute(context())
        entry = store.get(KEY)
        entry["response"]["data"][0]["deletes_at"] = "2020-01-01T00:00:00Z"
        store.set(KEY, entry)
        getimg_default.faults.add({"on": "download", "kind": "status", "status": 410})
        bill = rf"^Generation {response['id']} was billed \(0\.04 USD\) and is not saved\."
    else:
        getimg_default.faults.add({"on": "image", "kind": "drop_after_billing"})
        with pytest.raises(errors.OutcomeUnknownError):
            operator().execute(context())
        bill = r"^An earlier request may have been billed\."
    if fault is not None:
        getimg_default.faults.add({"on": "image", "kind": "status", **fault})
    with pytest.raises(error, match=bill) as caught:
        operator(on_unknown_outcome="resubmit", **fields).execute(context(try_number=2))
    if fault == {"status": 429}:
        # The retry policy decides by the status.
        assert caught.value.status == 429


def test_image_that_was_lost_stays_on_the_bill_of_later_tries(getimg_default, context, store):
    response = operator().execute(context())
    entry = store.get(KEY)
    entry["response"]["data"][0]["deletes_at"] = "2020-01-01T00:00:00Z"
    store.set(KEY, entry)
    getimg_default.faults.add({"on": "download", "kind": "status", "status": 410})
    getimg_default.faults.add({"on": "image", "kind": "drop_after_billing"})
    getimg_default.faults.add({"on": "image", "kind": "status", "status": 402})
    bill = f"Generation {response['id']} was billed (0.04 USD) and is not saved. 1 more request may have been billed. "
    for try_number, kind in ((2, errors.OutcomeUnknownError), (3, errors.InsufficientBalanceError)):
        with pytest.raises(kind) as error:
            operator(on_unknown_outcome="resubmit").execute(context(try_number=try_number))
        assert str(error.value).startswith(bill)
        assert error.value.cost == Decimal("0.04")
    operator(on_unknown_outcome="resubmit").execute(context(try_number=4))
    assert context.xcoms["getimg_cost"] == {"cost": 0.08, "images": 1, "models": {"seedream-5-lite": 0.08}}


def test_image_of_a_changed_request_stays_on_the_bill(getimg_default, context):
    response = operator().execute(context())
    getimg_default.faults.add({"on": "image", "kind": "drop_after_billing"})
    with pytest.raises(errors.OutcomeUnknownError) as error:
        operator(prompt="another").execute(context(try_number=2))
    assert str(error.value).startswith(
        f"Generation {response['id']} was billed (0.04 USD) and is not saved. "
    )


def test_resubmit_error_suggests_clearing_the_task_once_no_retry_is_left(getimg_default, context):
    getimg_default.faults.add({"on": "image", "kind": "status", "status": 500, "times": 2})
    with pytest.raises(errors.OutcomeUnknownError, match=r"A retry sends it again\."):
        operator(on_unknown_outcome="resubmit").execute(context(try_number=1, max_tries=1))
    with pytest.raises(errors.OutcomeUnknownError, match="clear the task"):
        operator(on_unknown_outcome="resubmit").execute(context(try_number=2, max_tries=1))


def test_unreadable_response_body_is_recorded_in_the_task_state(getimg_default, context, store):
    body = '{"id": "req-1", "status": "completed", "files": [{"url": "https://a.test/f?sig=abc"}]}'
    getimg_default.faults.add({"on": "image", "kind": "status", "status": 200, "body": body})
    with pytest.raises(errors.OutcomeUnknownError) as error:
        operator().execute(context())
    assert "sig=abc" not in str(error.value)
    assert store.get(KEY)["received"] == body


class TestExecutionTimeout:
    """Airflow raises the timeout in a SIGALRM handler, at any point of the task; these tests do the same with a timer."""

    @pytest.fixture(autouse=True)
    def _alarm(self):
        def out_of_time(*_: Any) -> None:
            raise AirflowTaskTimeout("out of time")

        before = signal.signal(signal.SIGALRM, out_of_time)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    def test_timeout_during_a_request_is_recorded_and_logged_as_possibly_billed(
        self, getimg_default, context, store, capsys
    ):
        getimg_default.faults.add({"on": "image", "kind": "hang", "seconds": 60})
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(AirflowTaskTimeout):
            operator().execute(context())
        log = capsys.readouterr().out
        assert (
            "The try ended with AirflowTaskTimeout before a response arrived. The request was sent at 20"
            in log
        )
        assert "It may have been billed." in log
        assert store.get(KEY)["failure"] == "The try ended with AirflowTaskTimeout before a response arrived."

    def test_paid_response_is_recorded_before_the_timeout_is_raised(
        self, getimg_default, context, store, monkeypatch
    ):
        write = store.set

        def slow(key: str, value: Any, **kwargs: Any) -> None:
            if value["state"] == "completed":
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                threading.Event().wait(0.2)
            write(key, value, **kwargs)

        monkeypatch.setattr(store, "set", slow)
        with pytest.raises(AirflowTaskTimeout):
            operator().execute(context())
        assert store.get(KEY)["state"] == "completed"

    def test_response_that_has_arrived_is_recorded_if_time_is_up_while_it_is_parsed(
        self, getimg_default, context, store, monkeypatch, capsys
    ):
        def out_of_time(*args: Any) -> Any:
            signal.raise_signal(signal.SIGALRM)
            return parse(*args)

        parse = Reader.read
        monkeypatch.setattr(Reader, "read", out_of_time)
        with pytest.raises(AirflowTaskTimeout):
            operator().execute(context())
        assert store.get(KEY)["state"] == "completed"
        assert "1 file, cost 0.04 USD" in capsys.readouterr().out
        assert operator().execute(context(2))["id"] == getimg_default.ledger[0].id

    def test_request_that_is_only_about_to_be_sent_is_not_sent(
        self, getimg_default, context, store, monkeypatch
    ):
        def out_of_time(*args: Any, **kwargs: Any) -> Any:
            signal.raise_signal(signal.SIGALRM)
            return watch(*args, **kwargs)

        watch = client.ConnectionWatch
        monkeypatch.setattr(client, "ConnectionWatch", out_of_time)
        with pytest.raises(AirflowTaskTimeout):
            operator().execute(context())
        assert not getimg_default.ledger
        assert store.get(KEY) is None

    def test_timeout_while_the_intent_is_written_leaves_no_unknown_outcome(
        self, getimg_default, context, store, monkeypatch
    ):
        write = store.set

        def out_of_time(*args: Any, **kwargs: Any) -> None:
            write(*args, **kwargs)
            signal.raise_signal(signal.SIGALRM)

        monkeypatch.setattr(store, "set", out_of_time)
        with pytest.raises(AirflowTaskTimeout):
            operator().execute(context())
        assert not getimg_default.ledger
        assert store.get(KEY) is None


@pytest.mark.parametrize("max_cost", ["0.04", 0.04, Decimal("0.04"), "1", None])
def test_price_within_max_cost_is_paid(getimg_default, context, max_cost):
    assert operator(max_cost=max_cost).execute(context())["usage"]["total_cost"] == 0.04


def test_price_over_max_cost_is_rejected_before_any_request(getimg_default, context, store):
    with pytest.raises(errors.CostLimitError) as error:
        operator(max_cost="0.0399").execute(context())
    assert str(error.value) == (
        "An image of model 'seedream-5-lite' costs 0.04 USD, more than max_cost (0.0399 USD): nothing was sent. "
        "Nothing was billed."
    )
    assert not getimg_default.ledger
    assert store.values == {}


def test_unknown_price_is_rejected_if_max_cost_is_set(getimg_default, context):
    with operator().hook as hook:
        [unpriced] = [model for model in hook.client.list_models("image") if not model.pricing.rates]
    with pytest.raises(errors.CostLimitError, match="has no known price"):
        operator(model=unpriced.id, max_cost="1000").execute(context())
    assert not getimg_default.ledger


def test_retry_returns_the_recorded_response_while_prices_are_unavailable(getimg_default, context):
    operator().execute(context())
    getimg_default.faults.add({"on": "models", "kind": "status", "status": 500, "times": 9})
    assert operator(max_cost="0.04").execute(context(try_number=2))["status"] == "completed"


def test_short_rate_limit_is_waited_out(getimg_default, context, capsys):
    getimg_default.faults.add(
        {"on": "image", "kind": "status", "status": 429, "headers": {"Retry-After": "0"}, "times": 2}
    )
    assert operator(rate_limit_wait="10").execute(context())["status"] == "completed"
    assert len(getimg_default.ledger) == 3
    assert capsys.readouterr().out.count("Rate limited, nothing was billed") == 2


def test_rate_limit_longer_than_rate_limit_wait_is_raised_with_its_retry_after(getimg_default, context):
    getimg_default.faults.add(
        {"on": "image", "kind": "status", "status": 429, "headers": {"Retry-After": "600"}, "times": 9}
    )
    with pytest.raises(errors.RateLimitError) as error:
        operator(rate_limit_wait=30).execute(context())
    assert error.value.retry_after == 600
    assert len(getimg_default.ledger) == 1


def test_nothing_is_sent_after_a_kill(getimg_default, context, store):
    task = operator()
    task.on_kill()
    with pytest.raises(errors.KilledError, match="Nothing was billed"):
        task.execute(context())
    assert not getimg_default.ledger
    assert store.values == {}


def test_operator_can_be_copied_and_its_defaults_overridden():
    with DAG("d", schedule=None, default_args={"retries": 7, "on_unknown_outcome": "resubmit"}):
        task = copy.deepcopy(operator())
        mapped = GenerateImageOperator.partial(task_id="mapped", model="m").expand(prompt=["a", "b"])
        own = operator(retries=0, retry_policy=None, dag=DAG("e", schedule=None))
    assert (task.retries, task.on_unknown_outcome) == (7, "resubmit")
    assert isinstance(task.retry_policy, GetimgRetryPolicy)
    assert (own.retries, own.retry_policy) == (0, None)
    assert mapped.retries == 7
    assert operator().retries == 3


def test_request_fields_and_connection_ids_are_templated():
    fields = {
        "model",
        "prompt",
        "aspect_ratio",
        "resolution",
        "output_format",
        "images",
        "getimg_conn_id",
        "aws_conn_id",
    }
    assert fields <= set(GenerateImageOperator.template_fields)
