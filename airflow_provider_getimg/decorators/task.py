# SPDX-License-Identifier: Apache-2.0
"""A TaskFlow task that keeps its operator's retries when it is mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import context_merge, determine_kwargs
from airflow.sdk.bases.decorator import _TaskDecorator

from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.version_compat import HAS_RETRY_POLICY

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import Context, DecoratedOperator, TaskDecorator
    from airflow.sdk import XComArg

#: The same default as the operators'.
RETRIES = 3


class GetimgTask(_TaskDecorator[..., Any, Any]):
    """
    A decorated function.

    Airflow gives a mapped task none of the operator's own defaults: they are added here, unless the task or
    ``default_args`` sets them.
    """

    def expand(self, **map_kwargs: Any) -> XComArg:
        """Map it over lists."""
        return _with_retries(super().expand(**map_kwargs))

    def expand_kwargs(self, kwargs: Any, *, strict: bool = True) -> XComArg:
        """Map it over a list of dicts."""
        return _with_retries(super().expand_kwargs(kwargs, strict=strict))


def _with_retries(mapped: Any) -> XComArg:
    defaults = mapped.operator.partial_kwargs
    defaults.setdefault("retries", RETRIES)
    if HAS_RETRY_POLICY:
        defaults.setdefault("retry_policy", RETRY_POLICY)
    result: XComArg = mapped
    return result


def call(function: Callable[..., Any], op_args: Any, op_kwargs: Any, context: Context) -> Any:
    """Call the decorated function with its arguments and the context variables that it takes."""
    context_merge(context, op_kwargs)
    return function(*op_args, **determine_kwargs(function, op_args, context))


def make_task(
    operator_class: type[DecoratedOperator],
    name: str,
    function: Callable[..., Any] | None,
    kwargs: dict[str, Any],
) -> TaskDecorator:
    """
    Return the task for a function; without a function, return a decorator.

    :param operator_class: The operator that calls the function.
    :param name: The decorator, as users write it.
    :param kwargs: Parameters of the operator.
    """
    if function is None:
        return cast("TaskDecorator", lambda function: make_task(operator_class, name, function, kwargs))
    kwargs = dict(kwargs)
    made = GetimgTask(
        function=function,
        operator_class=operator_class,
        # The function's return annotation is that of a request, not of the XCom.
        multiple_outputs=kwargs.pop("multiple_outputs", False),
        kwargs=kwargs,
        decorator_name=name,
    )
    return cast("TaskDecorator", made)
