# SPDX-License-Identifier: Apache-2.0
"""The fallback for what old Airflow versions lack, tested on every version as if it were an old one."""

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
    """Return a function that runs a failing task with a retry policy as before Airflow 3.3, and returns the error."""
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
        # As in Airflow 3.1.2: the templates of the context's task are not rendered.
        context = {"ti": ti, "task": Task(error, policy)}
        with pytest.raises(type(error)) as raised:
            made.execute(context)
        assert raised.value is error
        return raised.value

    return run


def test_permanent_error_fails_without_a_retry_and_keeps_its_class(task):
    error = task(errors.InvalidInputError("prompt must not be empty", billed="no"))
    assert isinstance(error, AirflowFailException)
    assert isinstance(error, errors.InvalidInputError)
    assert type(error).__name__ == "InvalidInputError"
    assert str(error) == "prompt must not be empty Nothing was billed."
    assert error.billed == "no"


@pytest.mark.parametrize(
    "error", [errors.NoConnectionError("x"), RuntimeError("x"), errors.LedgerError("x")], ids=repr
)
def test_other_errors_stay_retryable(task, error):
    assert not isinstance(task(error), AirflowFailException)


def test_unknown_outcome_is_retried_only_with_resubmit(task):
    assert isinstance(task(errors.OutcomeUnknownError("x")), AirflowFailException)
    error = task(errors.OutcomeUnknownError("x"), on_unknown_outcome="resubmit")
    assert not isinstance(error, AirflowFailException)


def test_delay_that_cannot_be_applied_is_logged_once(task, caplog):
    with caplog.at_level(logging.WARNING):
        error = task(errors.RateLimitError("x", retry_after=90.0))
    assert not isinstance(error, AirflowFailException)
    [record] = caplog.records
    assert (
        "can't delay the retry by 90 seconds: it follows after the task's own retry_delay, 0:05:00."
        in record.message
    )


def test_permanent_error_stays_retryable_without_a_retry_policy(task):
    assert not isinstance(task(errors.InvalidInputError("x"), None), AirflowFailException)


def test_custom_retry_policy_is_rejected_before_airflow_3_3(monkeypatch):
    monkeypatch.setattr(version_compat, "HAS_RETRY_POLICY", False)

    class OwnPolicy(GetimgRetryPolicy):
        pass

    with pytest.raises(TypeError, match=r"retry_policy needs Airflow 3\.3 or newer; this is Airflow 3\."):
        GenerateImageOperator(task_id="a", model="m", prompt="p", retry_policy=OwnPolicy())
    assert GenerateImageOperator(task_id="b", model="m", prompt="p").retry_policy is RETRY_POLICY
    assert GenerateImageOperator(task_id="c", model="m", prompt="p", retry_policy=None).retry_policy is None
