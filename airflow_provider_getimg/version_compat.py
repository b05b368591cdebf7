# SPDX-License-Identifier: Apache-2.0
"""
Differences between the supported versions of Airflow, each with the version that introduced it.

No other module checks a version. If a version lacks a feature, one sentence says so where a user runs into it.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from airflow import __version__ as AIRFLOW_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from airflow.providers.common.compat.sdk import BaseOperator
    from airflow.sdk import DAG

    MethodT = TypeVar("MethodT", bound=Callable[..., Any])
else:
    BaseOperator = object

__all__ = [
    "AIRFLOW",
    "AIRFLOW_VERSION",
    "HAS_RETRY_POLICY",
    "HAS_TASK_STATE_STORE",
    "READS_CONN_FIELDS",
    "SORTS_XCOMS",
    "RetryAction",
    "RetryDecision",
    "RetryPolicy",
    "RetryPolicyMixin",
    "form_widgets",
    "get_listener_manager",
    "never_expire",
    "with_retry_policy",
    "write_dag",
]

#: For example, ``(3, 1)``.
AIRFLOW = tuple(map(int, AIRFLOW_VERSION.split(".")[:2]))

#: 3.2: Airflow reads the connection form from the provider's metadata; before, from classmethods of the hook.
READS_CONN_FIELDS = AIRFLOW >= (3, 2)

#: 3.2: the REST API sorts XComs, as the lists of the gallery and the spend page need.
SORTS_XCOMS = AIRFLOW >= (3, 2)

#: 3.3: a task's ``retry_policy``.
HAS_RETRY_POLICY = AIRFLOW >= (3, 3)

#: 3.3: the task state store, which persists across a task's tries.
HAS_TASK_STATE_STORE = AIRFLOW >= (3, 3)

if TYPE_CHECKING or HAS_RETRY_POLICY:
    from airflow.sdk import RetryAction, RetryDecision, RetryPolicy
else:
    from dataclasses import dataclass
    from enum import Enum

    class RetryAction(Enum):
        """What to do after a failure."""

        RETRY = "retry"
        FAIL = "fail"
        DEFAULT = "default"

    @dataclass(frozen=True)
    class RetryDecision:
        """A retry policy's decision: an action, and how long to wait."""

        action: RetryAction = RetryAction.DEFAULT
        retry_delay: Any = None
        reason: str | None = None

        @classmethod
        def fail(cls, reason: str | None = None) -> RetryDecision:
            """Don't retry."""
            return cls(RetryAction.FAIL, reason=reason)

        @classmethod
        def retry(cls, delay: Any = None, reason: str | None = None) -> RetryDecision:
            """Retry, after ``delay`` if given."""
            return cls(RetryAction.RETRY, delay, reason)

        @classmethod
        def default(cls) -> RetryDecision:
            """Follow the task's own settings."""
            return cls()

    class RetryPolicy:
        """Called by :func:`with_retry_policy`, because Airflow doesn't."""


class RetryPolicyMixin(BaseOperator):
    """
    Mixin for operators with a ``retry_policy``. Before Airflow 3.3, :func:`with_retry_policy` stands in for Airflow.

    :param retry_policy: Before Airflow 3.3, the provider's own or None.
    :raises TypeError: Another policy was given before Airflow 3.3.
    """

    def __init__(self, *, retry_policy: RetryPolicy | None, **kwargs: Any) -> None:
        if HAS_RETRY_POLICY:
            super().__init__(retry_policy=retry_policy, **kwargs)
            return
        is_own = type(retry_policy).__module__ == "airflow_provider_getimg.retry"
        if retry_policy is not None and not is_own:
            raise TypeError(f"retry_policy needs Airflow 3.3 or newer; this is Airflow {AIRFLOW_VERSION}.")
        super().__init__(**kwargs)
        self.retry_policy = retry_policy
        self._decided_on: Exception | None = None


def with_retry_policy(method: MethodT) -> MethodT:
    """
    Apply the operator's retry policy to errors of a method that Airflow calls with the task's context.

    Airflow does so from 3.3 on. Before, an error that must not be retried also becomes an ``AirflowFailException``, and
    keeps its own type; the policy's delay is not applied.
    """
    if HAS_RETRY_POLICY:
        return method

    @functools.wraps(method)
    def run(self: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, context, *args, **kwargs)
        except Exception as error:
            # Only once, even if one such method calls another.
            if self.retry_policy is not None and error is not self._decided_on:
                self._decided_on = error
                ti = context["ti"]
                # 3.1.2: the task in the context is the one from before its templates were rendered.
                context = {**context, "task": self}
                _apply(self.retry_policy.evaluate(error, ti.try_number, ti.max_tries, context), error, self)
            raise

    return cast("MethodT", run)


def _apply(decision: RetryDecision, error: Exception, task: Any) -> None:
    if decision.action is RetryAction.FAIL:
        task.log.info("No retry: %s.", decision.reason)
        error.__class__ = _failing(cast("Any", type(error)))
    elif decision.retry_delay is not None:
        task.log.warning(
            "Airflow %s can't delay the retry by %.0f seconds: it follows after the task's own retry_delay, %s.",
            AIRFLOW_VERSION,
            decision.retry_delay.total_seconds(),
            task.retry_delay,
        )


@functools.cache
def _failing(kind: type[Any]) -> type[Any]:
    """Return an error class that is a ``kind``, with the same name, and that Airflow doesn't retry."""
    from airflow.providers.common.compat.sdk import AirflowFailException

    if issubclass(kind, AirflowFailException):
        return kind
    return type(kind.__name__, (kind, AirflowFailException), {"__module__": kind.__module__})


def never_expire() -> Any:
    """Return the ``retention`` for values that the task state store (3.3) keeps as long as the run. The test kit's needs none."""
    if not HAS_TASK_STATE_STORE:
        return None
    from airflow.sdk.execution_time.context import NEVER_EXPIRE

    return NEVER_EXPIRE


def form_widgets(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the provider's metadata (``conn-fields``) as the form widgets that a hook returns before 3.2."""
    # If they are not installed, Airflow's API server has stand-ins for them.
    forms, widgets = import_module("wtforms"), import_module("flask_appbuilder.fieldwidgets")
    return {
        name: (forms.IntegerField if "number" in field["schema"]["type"] else forms.StringField)(
            field["label"], description=field["description"], widget=widgets.BS3TextFieldWidget()
        )
        for name, field in fields.items()
    }


def get_listener_manager() -> Any:
    """Return the manager that task listeners are registered with, in the SDK from 3.2 on."""
    module = import_module("airflow.sdk.listener" if AIRFLOW >= (3, 2) else "airflow.listeners.listener")
    return module.get_listener_manager()


def write_dag(dag: DAG, bundle: Any) -> None:
    """Write a DAG to the database as part of a bundle, using a module that moved in 3.2."""
    if AIRFLOW >= (3, 2):
        module = import_module("airflow.dag_processing.dagbag")
        bag = module.DagBag(collect_dags=False, bundle_path=bundle.path, bundle_name=bundle.name)
        no_interval: AbstractContextManager[object] = nullcontext()
    else:
        from unittest.mock import patch

        module = import_module("airflow.models.dagbag")
        bag = module.DagBag(collect_dags=False, bundle_path=bundle.path)
        # Otherwise, a DAG with the same id that was written less than 30 seconds ago would be left as it is, and run.
        no_interval = patch("airflow.settings.MIN_SERIALIZED_DAG_UPDATE_INTERVAL", 0)
    bag.dags[dag.dag_id] = dag
    with no_interval:
        module.sync_bag_to_db(bag, bundle.name, None)
