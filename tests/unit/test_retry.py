# SPDX-License-Identifier: Apache-2.0
"""Which errors are retried, and after what delay."""

from __future__ import annotations

import threading
from datetime import timedelta
from types import SimpleNamespace

import airflow
import pytest
from airflow.sdk import DAG
from packaging.version import Version

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.retry import RETRY_POLICY, backoff, wait_out_rate_limits
from airflow_provider_getimg.version_compat import HAS_RETRY_POLICY, RetryAction

FAIL, RETRY, DEFAULT = RetryAction.FAIL, RetryAction.RETRY, RetryAction.DEFAULT
# Before 3.3.2, `.partial()` drops the defaults that an operator's __init__ sets for Airflow's arguments: docs/versions.md.
KEEPS_DEFAULTS_WHEN_MAPPED = Version(airflow.__version__) >= Version("3.3.2")


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (errors.InvalidInputError("x"), FAIL),
        (errors.ConnectionConfigError("x"), FAIL),
        (errors.ConnectionUnavailableError("x"), DEFAULT),
        (errors.CostLimitError("x"), FAIL),
        (errors.RequestRefusedError("x"), FAIL),
        (errors.InvalidRequestError("x"), FAIL),
        (errors.AuthenticationError("x"), FAIL),
        (errors.InsufficientBalanceError("x"), FAIL),
        (errors.ContentPolicyError("x"), FAIL),
        (errors.OutcomeUnknownError("x"), FAIL),
        (errors.PaidFilesGoneError("x"), FAIL),
        (errors.VideoFailedError("x"), FAIL),
        (errors.FileGoneError("x"), FAIL),
        (errors.FileRefusedError("x"), FAIL),
        (errors.NetworkRefusedError("x"), FAIL),
        (errors.ObjectExistsError("x"), FAIL),
        (errors.StoreRefusedError("x"), FAIL),
        (errors.RateLimitError("x"), RETRY),
        (errors.NoConnectionError("x"), DEFAULT),
        (errors.UnavailableError("x"), DEFAULT),
        (errors.KilledError("x"), DEFAULT),
        (errors.LedgerError("x"), DEFAULT),
        (errors.VideoPendingError("x"), DEFAULT),
        (errors.DownloadError("x"), DEFAULT),
        (errors.NotAnImageError("x", "ab"), DEFAULT),
        (errors.ObjectStoreError("x"), DEFAULT),
        (
            errors.TransferIncompleteError("x", [errors.FileGoneError("x"), errors.DownloadError("x")]),
            DEFAULT,
        ),
        (
            errors.TransferIncompleteError("x", [errors.FileGoneError("x"), errors.ObjectExistsError("x")]),
            FAIL,
        ),
        (RuntimeError("x"), DEFAULT),
        (errors.BatchIncompleteError("x", [errors.FileGoneError("y"), errors.DownloadError("z")]), DEFAULT),
        (errors.BatchIncompleteError("x", [errors.ContentPolicyError("y")]), FAIL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.value,
)
def test_each_error_is_retried_or_fails_at_once(error, action):
    assert RETRY_POLICY.evaluate(error, try_number=1, max_tries=3).action is action


def test_every_error_class_has_a_tested_decision():
    tested = {type(mark) for mark, _ in test_each_error_is_retried_or_fails_at_once.pytestmark[0].args[1]}
    abstract = {errors.GetimgError, errors.TransferError}
    known = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.GetimgError)
    }
    assert known - tested == abstract


@pytest.mark.parametrize(
    ("error", "option"),
    [(errors.OutcomeUnknownError, "on_unknown_outcome"), (errors.VideoFailedError, "on_failed_video")],
    ids=["unknown", "failed"],
)
@pytest.mark.parametrize(("value", "action"), [("resubmit", RETRY), ("fail", FAIL)])
def test_unknown_outcome_and_failed_video_are_retried_only_with_resubmit(error, option, value, action):
    context = {"task": SimpleNamespace(**{option: value})}
    assert RETRY_POLICY.evaluate(error("x"), 1, 3, context).action is action


@pytest.mark.parametrize(("asked", "low", "high"), [(90.0, 90, 90), (0.0, 1, 1), (None, 7.5, 15)])
def test_delay_after_a_429_follows_retry_after_and_is_never_zero(asked, low, high):
    decision = RETRY_POLICY.evaluate(errors.RateLimitError("x", retry_after=asked), 1, 3)
    assert timedelta(seconds=low) <= decision.retry_delay <= timedelta(seconds=high)


def test_batch_retry_waits_for_the_longest_retry_after():
    limits = [errors.RateLimitError("y", retry_after=wait) for wait in (20.0, 90.0)]
    error = errors.BatchIncompleteError("x", [errors.ContentPolicyError("z"), *limits])
    assert RETRY_POLICY.evaluate(error, 1, 3).retry_delay == timedelta(seconds=90)


def test_backoff_grows_up_to_a_limit():
    for attempt, full in ((1, 15), (2, 30), (3, 60), (7, 600), (2000, 600)):
        assert full / 2 <= backoff(attempt) <= full


def test_retry_after_of_zero_does_not_cause_rapid_retries():
    calls = []

    def limited() -> None:
        calls.append(1)
        raise errors.RateLimitError("x", retry_after=0.0)

    log = SimpleNamespace(info=lambda *_: None)
    with pytest.raises(errors.RateLimitError):
        wait_out_rate_limits(3.5, log, threading.Event())(limited)
    assert len(calls) <= 3


@pytest.mark.skipif(not HAS_RETRY_POLICY, reason="Airflow serializes no policy before 3.3")
def test_retry_policy_survives_serialization_of_plain_and_mapped_tasks():
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("d", schedule=None) as dag:
        GenerateImageOperator(task_id="one", model="m", prompt="p")
        GenerateImageOperator.partial(task_id="mapped", model="m").expand(prompt=["a"])
        GenerateImageOperator(task_id="none", model="m", prompt="p", retry_policy=None)
    restored = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert {
        task_id: restored.get_task(task_id).has_retry_policy for task_id in ("one", "mapped", "none")
    } == {
        "one": True,
        "mapped": KEEPS_DEFAULTS_WHEN_MAPPED,
        "none": False,
    }
