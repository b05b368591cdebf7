# SPDX-License-Identifier: Apache-2.0
"""Generate one image with getimg.ai."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_getimg.api.signals import call_from_handler
from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.operators.one_generation import OneGenerationMixin
from airflow_provider_getimg.records import request_record
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.version_compat import RetryPolicyMixin, with_retry_policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk import RetryPolicy


class GenerateImageOperator(OneGenerationMixin, RetryPolicyMixin, BaseOperator):
    """
    Generate an image, and push the API's response to XCom.

    The XCom is the API's response as plain JSON: ``id``, ``status``, ``model``, ``data`` (a list of files, each
    with ``url``, ``mime_type``, ``width``, ``height`` and ``deletes_at``) and ``usage`` (``total_cost``,
    ``unit_price``, ``quantity``, ``billable_unit``). In addition, ``request`` holds what was requested, with the ``labels``.
    A second XCom, ``getimg_cost``, holds what was billed: ``cost`` in USD, ``images``, and the cost by ``models``. The files
    themselves stay at getimg.ai until ``deletes_at``: pass the response to
    :class:`~airflow_provider_getimg.transfers.getimg_to_s3.TransferToS3Operator` to keep them.

    Each generation is billed, and a lost response can't be fetched again. So each try records its requests and responses in
    the task's state (Airflow's task state store, or the connection's ``state_folder``):

    - A **retry** after a paid response returns that response without sending a request. A retry after a refusal, a 429 or
      a failed connection sends the request again: nothing was billed.
    - If a request was sent and no response was seen (a timeout, a dropped connection, a 5xx, a killed worker), it may have
      been billed: ``on_unknown_outcome`` decides.
    - A **Clear** after delivery generates a new image, which is billed again. So does a changed request. An image that was
      paid for but never reached XCom is delivered first.

    Invalid input is rejected before any request is sent. Every error says whether anything was billed.

    :param model: Model identifier, such as ``seedream-5-lite``. (templated)
    :param prompt: What to draw, 1 to 4096 characters. (templated)
    :param aspect_ratio: Such as ``16:9``. Default: the model's. (templated)
    :param resolution: Such as ``2K``. It determines the price of some models. Default: the model's. (templated)
    :param output_format: ``png``, ``jpeg`` or ``webp``. Default: the API's, ``jpeg``. (templated)
    :param images: Reference images, at most 8, or as many as the catalogue lists for the model: a list of
        ``{"url": ..., "role": ...}``, or of plain URLs, whose role is ``reference_image``. A URL is ``https://``, ``data:``
        or ``s3://bucket/key``, which is read with ``aws_conn_id`` and sent as a data URL. PNG, JPEG or WebP, at most 10 MiB
        each and 25 MiB for the whole request, base64-encoded. (templated)
    :param labels: Your own labels for the image, such as ``{"sku": "A-17"}``. Not sent to the API: included in the XCom's
        ``request``, and usable as placeholders in the transfer's ``s3_key``. (templated)
    :param on_unknown_outcome: What to do when a request may have been billed but its response was lost, or when a paid
        response is recorded but its files are gone. ``"fail"`` (default) fails the task, without further retries.
        ``"resubmit"`` lets a retry send the request again, which may pay twice. (templated)
    :param max_cost: The most that the image may cost, in USD, as a string or a number, such as ``"0.05"``. The price is read
        from the catalogue before the request; if it is higher or unknown, the task fails. Default: no limit. (templated)
    :param rate_limit_wait: Maximum seconds to wait out rate limits within a try. A longer wait becomes a retry, which frees
        the worker slot. Default 120. (templated)
    :param retries: Default 3.
    :param retry_policy: Default: :class:`~airflow_provider_getimg.retry.GetimgRetryPolicy`.
    :param getimg_conn_id: The getimg.ai connection. Default ``getimg_default``. (templated)
    :param aws_conn_id: The AWS connection for ``s3://`` reference images, and for a ``state_folder`` that names none; None for
        boto3's own credentials. Default ``aws_default``. (templated)
    """

    template_fields: Sequence[str] = (
        "model",
        "prompt",
        "aspect_ratio",
        "resolution",
        "output_format",
        "images",
        "labels",
        "on_unknown_outcome",
        "max_cost",
        "rate_limit_wait",
        "getimg_conn_id",
        "aws_conn_id",
    )
    ui_color = "#efe6ff"

    def __init__(
        self,
        *,
        model: str,
        prompt: str,
        aspect_ratio: str | None = None,
        resolution: str | None = None,
        output_format: str | None = None,
        images: Sequence[str | dict[str, str]] | None = None,
        labels: Mapping[str, Any] | None = None,
        on_unknown_outcome: str = "fail",
        max_cost: Decimal | float | str | None = None,
        rate_limit_wait: float | str = 120.0,
        getimg_conn_id: str = GetimgHook.default_conn_name,
        aws_conn_id: str | None = "aws_default",
        retries: int | None = 3,
        retry_policy: RetryPolicy | None = RETRY_POLICY,
        **kwargs: Any,
    ) -> None:
        super().__init__(retries=retries, retry_policy=retry_policy, **kwargs)
        self.model = model
        self.prompt = prompt
        self.aspect_ratio = aspect_ratio
        self.resolution = resolution
        self.output_format = output_format
        self.images = images
        self.labels = labels
        self.on_unknown_outcome = on_unknown_outcome
        self.max_cost = max_cost
        self.rate_limit_wait = rate_limit_wait
        self.getimg_conn_id = getimg_conn_id
        self.aws_conn_id = aws_conn_id

    @with_retry_policy
    def execute(self, context: Context) -> dict[str, Any]:
        """
        Generate the image, or find an earlier try's response, and return the response.

        :raises GetimgError: Its message says what happened and whether it was billed.
        """
        with self._reporting_earlier(context):
            return self._generate(context)

    def _generate(self, context: Context) -> dict[str, Any]:
        from airflow_provider_getimg.api.parameters import checked_choice, checked_seconds
        from airflow_provider_getimg.api.pricing import check_price, checked_max_cost, image_price, named
        from airflow_provider_getimg.api.references import check_references, exceeds_documented_references
        from airflow_provider_getimg.api.requests import ImageRequest
        from airflow_provider_getimg.durable.paid_image import PaidImage
        from airflow_provider_getimg.durable.paid_request import UNKNOWN_OUTCOME
        from airflow_provider_getimg.s3.labels import checked_labels

        max_cost = checked_max_cost(self.max_cost)
        on_unknown_outcome = checked_choice("on_unknown_outcome", self.on_unknown_outcome, UNKNOWN_OUTCOME)
        rate_limit_wait = checked_seconds("rate_limit_wait", self.rate_limit_wait)
        labels = checked_labels(self.labels)
        request = self._request(ImageRequest)
        paid = PaidImage(
            self._ledger(context, request.fingerprint),
            on_unknown_outcome=on_unknown_outcome,
            killed=self._killed,
            all_gone=self._all_gone,
        )
        generation = paid.recorded()
        if generation is None:
            with self.hook:
                if max_cost is not None or exceeds_documented_references(request.checked):
                    model = self.hook.client.get_model(request.checked.model)
                    check_references(model, request.checked)
                    if max_cost is not None:
                        resolution = request.checked.resolution
                        what = named("An image", model, resolution)
                        check_price(image_price(model, resolution), what, max_cost)
                resolved = request.resolve(self._s3_client)
                generation = paid.generate(self.hook.client, resolved, rate_limit_wait)
        response = self._push(
            context, generation, request_record(request.checked.to_json(), labels), paid.replaced_cost
        )
        # Not recorded as delivered if killed, most likely by a Clear: its new run wipes the XCom and reuses this image for free.
        if not self._killed.is_set():
            paid.delivered()
        return response

    def on_kill(self) -> None:
        """Send nothing more. The task waits for a request in flight until Airflow ends the task: the API can't cancel."""
        call_from_handler(self._killed.set)
        client = self.hook.__dict__.get("client")
        if client is not None and client.in_flight:
            call_from_handler(
                self.log.warning,
                "The task was terminated with a request in flight, which may be billed. It waits for the response until Airflow ends it.",
            )
