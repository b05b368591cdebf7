# SPDX-License-Identifier: Apache-2.0
"""A paid image is owed until its response has reached XCom, even after a Clear."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import time_machine

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.durable.ledger import KEY
from airflow_provider_getimg.operators.image import GenerateImageOperator

CLEARED = {"try_number": 5, "max_tries": 7}


class PushError(Exception):
    """An error as a database, a network or a custom XCom backend raises it."""


def operator(**fields: Any) -> GenerateImageOperator:
    return GenerateImageOperator(
        task_id="generate",
        **({"model": "seedream-5-lite", "prompt": "A red fox", "rate_limit_wait": 0} | fields),
    )


def refuse(*_: Any, **__: Any) -> None:
    raise PushError("XCom is away")


@pytest.fixture
def run(getimg_default, context):
    """Return a function that runs a try, whose push to XCom may fail."""

    def run_try(try_number: int = 1, max_tries: int = 3, *, pushes: bool = True, **fields: Any) -> Any:
        made = context(try_number=try_number, max_tries=max_tries)
        if not pushes:
            made["ti"].xcom_push = refuse
        return operator(**fields).execute(made)

    return run_try


@pytest.fixture
def posts(getimg_default):
    return lambda: len(getimg_default.ledger)


@pytest.fixture
def undelivered(run, store) -> str:
    """Return the id of a paid response that no try could push to XCom."""
    for try_number in (1, 2, 3, 4):
        with pytest.raises(PushError):
            run(try_number, pushes=False)
    return store.get(KEY)["response"]["id"]


def test_pushed_response_is_marked_as_delivered(run, context, store):
    response = run()
    assert context.xcoms["return_value"] == response
    assert store.get(KEY)["delivered"] is True


def test_retry_after_a_failed_push_returns_the_paid_response(run, posts, capsys):
    with pytest.raises(PushError):
        run(pushes=False)
    log = capsys.readouterr().out
    assert "was billed and could not be pushed to XCom. Neither a retry nor a Clear pays for it again." in log
    assert "sig=" not in log
    assert run(2)["status"] == "completed"
    assert posts() == 1


def test_response_without_an_id_is_logged_and_not_paid_again_after_a_failed_push(
    run, posts, getimg_default, capsys
):
    body = {"data": [{"url": "https://a.test/x.png"}], "usage": {"total_cost": 0.04}}
    getimg_default.faults.add({"on": "image", "kind": "response", "body": json.dumps(body)})
    with pytest.raises(PushError):
        run(pushes=False)
    assert "was billed and could not be pushed to XCom." in capsys.readouterr().out
    assert run(2)["data"][0]["url"] == "https://a.test/x.png"
    assert posts() == 1


def test_clear_returns_an_undelivered_response_and_the_next_clear_generates_again(run, posts, undelivered):
    assert run(**CLEARED)["id"] == undelivered
    # So do the retries after that Clear.
    assert run(6, 7)["id"] == undelivered
    assert posts() == 1
    # It is delivered now: the next Clear generates another image.
    assert run(9, 11)["id"] != undelivered
    assert posts() == 2


def test_consecutive_clears_with_failed_pushes_do_not_pay_again(run, posts, undelivered):
    for try_number, max_tries in ((5, 7), (9, 11)):
        with pytest.raises(PushError):
            run(try_number, max_tries, pushes=False)
    assert run(13, 15)["id"] == undelivered
    assert posts() == 1


def test_clear_of_a_delivered_image_generates_another(run, posts):
    first = run()
    assert run(**CLEARED)["id"] != first["id"]
    assert posts() == 2


def test_undelivered_image_paid_after_a_clear_is_returned_by_the_next_clear(run, posts, store):
    run()
    with pytest.raises(PushError):
        run(**CLEARED, pushes=False)
    second = store.get(KEY)["response"]["id"]
    assert run(9, 11)["id"] == second
    assert posts() == 2


def test_task_without_xcom_push_counts_as_delivered_when_it_succeeds(run, posts, context):
    run(do_xcom_push=False)
    assert context.xcoms == {}
    run(**CLEARED, do_xcom_push=False)
    assert posts() == 2


def test_clear_with_a_changed_request_generates_a_new_image(run, posts, undelivered):
    assert run(**CLEARED, prompt="A blue fox")["id"] != undelivered
    assert posts() == 2


def test_clear_pays_nothing_if_the_delivered_mark_could_not_be_written(run, posts, store, monkeypatch):
    write = store.set

    def refuse_the_mark(key: str, value: Any, **options: Any) -> None:
        if value.get("delivered"):
            raise ConnectionError("the API server is away")
        write(key, value, **options)

    monkeypatch.setattr(store, "set", refuse_the_mark)
    first = run()
    # Not known to be delivered: it is returned again instead of being paid for again.
    assert run(**CLEARED) == first
    assert posts() == 1


class TestExpiredFiles:
    @pytest.fixture(autouse=True)
    def _past(self, undelivered, store):
        entry = store.get(KEY)
        entry["response"]["data"][0]["deletes_at"] = "2020-01-01T00:00:00Z"
        store.set(KEY, entry)

    @pytest.fixture
    def gone(self, getimg_default) -> None:
        getimg_default.faults.add({"on": "download", "kind": "status", "status": 403})

    @pytest.mark.usefixtures("gone")
    def test_fail_a_retry_once_the_server_has_deleted_them(self, run, posts, undelivered):
        with pytest.raises(errors.PaidFilesGoneError) as error:
            run(4)
        assert (error.value.billed, error.value.cost) == ("yes", Decimal("0.04"))
        assert error.value.generation_ids == (undelivered,)
        assert posts() == 1

    @pytest.mark.usefixtures("gone")
    def test_are_regenerated_after_a_clear_once_the_server_has_deleted_them(
        self, run, posts, undelivered, capsys
    ):
        assert run(**CLEARED)["id"] != undelivered
        assert "The task was cleared since: a new image is generated, and billed." in capsys.readouterr().out
        assert posts() == 2

    @pytest.mark.parametrize("later", [{"try_number": 4}, CLEARED], ids=["retry", "clear"])
    def test_are_returned_while_the_server_still_has_them(self, run, posts, undelivered, later):
        assert run(**later)["id"] == undelivered
        assert posts() == 1

    @pytest.mark.parametrize("later", [{"try_number": 4}, CLEARED], ids=["retry", "clear"])
    def test_are_returned_if_the_server_is_unavailable(self, run, posts, undelivered, getimg_default, later):
        getimg_default.faults.add({"on": "download", "kind": "status", "status": 503})
        assert run(**later)["id"] == undelivered
        assert posts() == 1


@pytest.mark.parametrize("later", [{"try_number": 4}, CLEARED], ids=["retry", "clear"])
def test_files_are_not_treated_as_deleted_because_of_the_worker_clock_alone(run, posts, undelivered, later):
    with time_machine.travel(timedelta(days=400), tick=True):
        assert run(**later)["id"] == undelivered
    assert posts() == 1
