# SPDX-License-Identifier: Apache-2.0
"""``@task.getimg_image``: turns a function that returns a request into a task that generates the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import DecoratedOperator

from airflow_provider_getimg.decorators.task import call, make_task
from airflow_provider_getimg.hooks.masking import Redacted, mask_signed_urls
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.version_compat import with_retry_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow.providers.common.compat.sdk import Context, TaskDecorator


class _GenerateImageDecoratedOperator(DecoratedOperator, GenerateImageOperator):
    """
    Call a function for the request, then run as :class:`~airflow_provider_getimg.operators.image.GenerateImageOperator`.

    :param python_callable: Returns the request: a prompt, or a dict of the operator's ``model``, ``prompt``,
        ``aspect_ratio``, ``resolution``, ``output_format``, ``images`` and ``labels``. It is called in each try, and its
        result is not templated.
    :param model: The model, if the request names none. (templated)
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *GenerateImageOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {**DecoratedOperator.template_fields_renderers}
    custom_operator_name = "@task.getimg_image"
    # The request is known only after the function has run: update the rendered fields then.
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        model: str | None = None,
        prompt: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(python_callable=python_callable, model=model, prompt=prompt, **kwargs)

    @with_retry_policy
    def execute(self, context: Context) -> dict[str, Any]:
        """
        Call the function, then generate the image.

        :raises InvalidInputError: The function did not return a request.
        :raises GetimgError: Its message says what happened and whether it was billed.
        """
        from airflow_provider_getimg.api.errors import InvalidInputError
        from airflow_provider_getimg.api.quote import quote
        from airflow_provider_getimg.durable.request_spec import check_fields

        request = call(self.python_callable, self.op_args, self.op_kwargs, context)
        if isinstance(request, str):
            request = {"prompt": request}
        with self._reporting_earlier(context):
            if not isinstance(request, Mapping):
                raise InvalidInputError(
                    f"The function of @task.getimg_image must return a prompt or a dict, got {quote(request)}."
                )
            check_fields(request)
        for name, value in request.items():
            setattr(self, name, Redacted(value) if name == "images" else value)
        # As with rendered templates.
        mask_signed_urls(request)
        response: dict[str, Any] = super().execute(context)
        return response


def getimg_image_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """
    Turn a function that returns a request into a task: ``@task.getimg_image``.

    :param python_callable: The function. It returns a prompt, or a dict of the templated parameters of ``GenerateImageOperator``
        such as ``model``, ``prompt`` and ``labels``. It is called in each try; Jinja in what it returns is not rendered.
    :param kwargs: Parameters of ``GenerateImageOperator``.
    """
    return make_task(
        _GenerateImageDecoratedOperator,
        _GenerateImageDecoratedOperator.custom_operator_name,
        python_callable,
        kwargs,
    )
