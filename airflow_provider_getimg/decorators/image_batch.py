# SPDX-License-Identifier: Apache-2.0
"""``@task.getimg_images_to_s3``: turns a function that returns requests into a task that generates and saves images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import DecoratedOperator

from airflow_provider_getimg.decorators.task import call, make_task
from airflow_provider_getimg.hooks.masking import Redacted
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from airflow_provider_getimg.version_compat import with_retry_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow.providers.common.compat.sdk import Context, TaskDecorator


class _GenerateImagesToS3DecoratedOperator(DecoratedOperator, GenerateImagesToS3Operator):
    """
    Call a function for the requests, then run as
    :class:`~airflow_provider_getimg.operators.image_batch.GenerateImagesToS3Operator`.

    :param python_callable: Returns the operator's ``requests``; a prompt may stand for a request. It is called in each try, and
        its result is not templated.
    """  # noqa: D205

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *GenerateImagesToS3Operator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **GenerateImagesToS3Operator.template_fields_renderers,
    }
    custom_operator_name = "@task.getimg_images_to_s3"
    # The requests are known only after the function has run: update the rendered fields then.
    overwrite_rtif_after_execution = True

    def __init__(self, *, python_callable: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(python_callable=python_callable, requests=None, **kwargs)

    @with_retry_policy
    def execute(self, context: Context) -> dict[str, Any]:
        """
        Call the function, then generate and save the images.

        :raises GetimgError: Its message says what failed, what it cost, and what to do.
        """
        requests = call(self.python_callable, self.op_args, self.op_kwargs, context)
        if isinstance(requests, list | tuple):
            requests = [{"prompt": request} if isinstance(request, str) else request for request in requests]
            self.requests = Redacted(requests)
        else:
            self.requests = requests
        summary: dict[str, Any] = super().execute(context)
        return summary


def getimg_images_to_s3_task(
    python_callable: Callable[..., Any] | None = None, **kwargs: Any
) -> TaskDecorator:
    """
    Turn a function that returns requests into a task: ``@task.getimg_images_to_s3``.

    :param python_callable: The function. It returns a list of prompts or of dicts, or the ``s3://bucket/key`` of a JSON Lines
        file, as ``requests`` of the operator, which takes no plain prompts. It is called in each try; Jinja in what it returns is
        not rendered.
    :param kwargs: Parameters of ``GenerateImagesToS3Operator``.
    """
    return make_task(
        _GenerateImagesToS3DecoratedOperator,
        _GenerateImagesToS3DecoratedOperator.custom_operator_name,
        python_callable,
        kwargs,
    )
