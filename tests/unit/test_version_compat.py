# SPDX-License-Identifier: Apache-2.0
"""What stands in for Airflow where a version lacks something: on every version, as if it were an old one."""

from __future__ import annotations

import logging
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_getimg import version_compat
from airflow_provider_getimg.api import errors
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.retry import RETRY_POLICY, GetimgRetryPolicy


@pytest.fixture
def task(monkeypatch):
    """Make a task that raises an error, with a policy, before Airflow 3.3."""
    monkeypatch.setattr(version_compat, "HAS_RETRY_POLICY", False)

    class Task:
        retry_delay = timedelta(minutes=5)
        on_unknown_outcome = "fail"
        log = logging.getLogger(__name__)
        _decided_on = None

        def __init__(self, error: BaseException, policy: Any) -> None:
            self.error = error
            self.retry_policy = policy

        @version_compat.with_retry_policy
        def execute(self, context: Any) -> None:
            self.inner(context)

        @version_compat.with_retry_policy
        def inner(self, context: Any) -> None:
            raise self.error

    def run(error: BaseException, policy: Any = RETRY_POLICY, **settings: Any) -> BaseException:
        made = Task(error, policy)
        vars(made).update(settings)
        ti = SimpleNamespace(try_number=1, max_tries=3)
        # As that of Airflow 3.1.2: the task in it has its templates as they were written.
        context = {"ti": ti, "task": Task(error, policy)}
        with pytest.raises(type(error)) as raised:
            made.execute(context)
        assert raised.value is error
        return raised.value

    return run


def test_what_would_fail_again_fails_at_once_and_stays_what_it_is(task):
    error = task(errors.InvalidInputError("prompt must not be empty", billed="no"))
    assert isinstance(error, AirflowFailException)
    assert isinstance(error, errors.InvalidInputError)
    assert type(error).__name__ == "InvalidInputError"
    assert str(error) == "prompt must not be empty Nothing was billed."
    assert error.billed == "no"


@pytest.mark.parametrize(
    "error", [errors.NoConnectionError("x"), RuntimeError("x"), errors.LedgerError("x")], ids=repr
)
def test_the_rest_is_retried_as_the_task_says(task, error):
    assert not isinstance(task(error), AirflowFailException)


def test_the_operator_decides_about_an_unknown_outcome(task):
    assert isinstance(task(errors.OutcomeUnknownError("x")), AirflowFailException)
    error = task(errors.OutcomeUnknownError("x"), on_unknown_outcome="resubmit")
    assert not isinstance(error, AirflowFailException)


def test_a_delay_that_can_not_be_kept_is_logged_once(task, caplog):
    with caplog.at_level(logging.WARNING):
        error = task(errors.RateLimitError("x", retry_after=90.0))
    assert not isinstance(error, AirflowFailException)
    [record] = caplog.records
    assert (
        "can't wait the 90 seconds that are needed: a retry follows after the task's own retry_delay, 0:05:00."
        in record.message
    )


def test_without_a_policy_airflow_decides(task):
    assert not isinstance(task(errors.InvalidInputError("x"), None), AirflowFailException)


def test_a_policy_of_ones_own_is_refused(monkeypatch):
    monkeypatch.setattr(version_compat, "HAS_RETRY_POLICY", False)

    class OwnPolicy(GetimgRetryPolicy):
        pass

    with pytest.raises(
        TypeError, match=r"retry_policy must be left out before Airflow 3\.3, this is Airflow 3\."
    ):
        GenerateImageOperator(task_id="a", model="m", prompt="p", retry_policy=OwnPolicy())
    assert GenerateImageOperator(task_id="b", model="m", prompt="p").retry_policy is RETRY_POLICY
    assert GenerateImageOperator(task_id="c", model="m", prompt="p", retry_policy=None).retry_policy is None
