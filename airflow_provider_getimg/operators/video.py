# SPDX-License-Identifier: Apache-2.0
"""Generate one video with getimg.ai."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, conf

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

    from airflow_provider_getimg.api.requests import VideoRequest
    from airflow_provider_getimg.durable.ledger import Ledger
    from airflow_provider_getimg.durable.paid_video import PaidVideo
    from airflow_provider_getimg.durable.video_polling import VideoWait

# Grace period in seconds, after which Airflow itself ends a wait that the triggerer should have ended.
_TRIGGERER_GRACE = 300.0


class GenerateVideoOperator(OneGenerationMixin, RetryPolicyMixin, BaseOperator):
    """
    Generate a video, wait until it is completed, and push the API's response to XCom.

    The API responds to a request immediately, with an id; generating the video takes one to twenty minutes. It is billed once:

    - The **id is recorded** before anything else. From then on, each try, triggerer and Clear before delivery only polls
      that video, which is free.
    - If a request was sent and no response was seen (a timeout, a dropped connection, a 5xx, a killed worker), it may have
      been submitted: ``on_unknown_outcome`` decides. A poll that gets no response is repeated.
    - A **Clear** after delivery generates a new video, which is billed again.
    - The API **can't cancel**: the video of a terminated task is still generated and billed. The next try, or a Clear, gets it.

    The XCom is the API's response as plain JSON, in the same shape as an image's: ``id``, ``status``, ``model``, ``data`` (a
    list of files, each with ``url``, ``mime_type``, ``width``, ``height``, ``deletes_at``, ``duration`` in seconds, ``fps`` and
    ``has_sound``) and ``usage``. In addition, ``request`` holds what was requested, with the ``labels``. A second XCom,
    ``getimg_cost``, holds what was billed. Pass the response to
    :class:`~airflow_provider_getimg.transfers.getimg_to_s3.TransferToS3Operator` to keep the files.

    Invalid input is rejected before any request is sent. Every error says whether anything was billed.

    :param model: Model identifier, such as ``seedance-v1-pro``. (templated)
    :param prompt: What to show, 1 to 4096 characters. (templated)
    :param aspect_ratio: Such as ``16:9``. Default: the model's. (templated)
    :param resolution: Such as ``1080p``. Default: the model's. (templated)
    :param duration: In whole seconds. Default: the model's. (templated)
    :param sound: Whether the video has sound. It may affect the price. Default: the model's. (templated)
    :param images: Reference images, at most 8, or as many as the catalogue lists for the model: a list of
        ``{"url": ..., "role": ...}`` with the role ``reference_image``, ``first_frame`` or ``last_frame``, or of plain URLs,
        whose role is ``reference_image``. A URL is ``https://``, ``data:`` or ``s3://bucket/key``, which is read with
        ``aws_conn_id`` and sent as a data URL. PNG, JPEG or WebP, at most 10 MiB each and 25 MiB for the whole request,
        base64-encoded. (templated)
    :param labels: Your own labels for the video, such as ``{"sku": "A-17"}``. Not sent to the API: included in the XCom's
        ``request``, and usable as placeholders in the transfer's ``s3_key``. (templated)
    :param on_unknown_outcome: What to do when a request may have been billed but its response was lost, or when a paid
        response is recorded but its files are gone. ``"fail"`` (default) fails the task, without further retries.
        ``"resubmit"`` lets a retry send the request again, which may pay twice. (templated)
    :param on_failed_video: What to do when the API could not generate the video. ``"fail"`` (default) fails the task, without
        further retries. ``"resubmit"`` lets a retry submit another one, which is billed. (templated)
    :param max_cost: The most that the video may cost, in USD, as a string or a number, such as ``"0.50"``. The price is read
        from the catalogue before the request, for the video's duration, resolution and sound; if it is higher or unknown, the
        task fails. Default: no limit. (templated)
    :param rate_limit_wait: Maximum seconds to wait out rate limits, within a try, until the request is accepted. A longer
        wait becomes a retry, which frees the worker slot. Default 120. (templated)
    :param deferrable: Wait in the triggerer, without a worker slot. Default: ``[operators] default_deferrable`` in Airflow's
        configuration.
    :param poll_interval: Seconds between polls of the video, plus or minus up to a fifth; the first poll comes after one to two
        intervals. At least 0.01; with ``deferrable``, use 6 or more, because Airflow may fail a task that resumes sooner. Default
        10. (templated)
    :param timeout: Seconds that each try waits for the video. Then the try fails while the video is still being generated, and
        a retry resumes waiting for it. Default 1800. (templated)
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
        "duration",
        "sound",
        "images",
        "labels",
        "on_unknown_outcome",
        "on_failed_video",
        "max_cost",
        "rate_limit_wait",
        "poll_interval",
        "timeout",
        "getimg_conn_id",
        "aws_conn_id",
    )
    ui_color = "#efe6ff"
    # Set once it is known.
    _video_id = ""

    def __init__(
        self,
        *,
        model: str,
        prompt: str,
        aspect_ratio: str | None = None,
        resolution: str | None = None,
        duration: int | str | None = None,
        sound: bool | str | None = None,
        images: Sequence[str | dict[str, str]] | None = None,
        labels: Mapping[str, Any] | None = None,
        on_unknown_outcome: str = "fail",
        on_failed_video: str = "fail",
        max_cost: Decimal | float | str | None = None,
        rate_limit_wait: float | str = 120.0,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | str = 10.0,
        timeout: float | str = 1800.0,
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
        self.duration = duration
        self.sound = sound
        self.images = images
        self.labels = labels
        self.on_unknown_outcome = on_unknown_outcome
        self.on_failed_video = on_failed_video
        self.max_cost = max_cost
        self.rate_limit_wait = rate_limit_wait
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.getimg_conn_id = getimg_conn_id
        self.aws_conn_id = aws_conn_id

    @with_retry_policy
    def execute(self, context: Context) -> dict[str, Any]:
        """
        Submit the video, or find an earlier try's, wait for it, and return the API's response.

        :raises GetimgError: Its message says what happened and whether it was billed.
        """
        with self._reporting_earlier(context):
            return self._generate(context)

    def _generate(self, context: Context) -> dict[str, Any]:
        from airflow_provider_getimg.api.parameters import checked_choice, checked_seconds
        from airflow_provider_getimg.api.pricing import checked_max_cost
        from airflow_provider_getimg.api.requests import VideoRequest
        from airflow_provider_getimg.durable.paid_request import UNKNOWN_OUTCOME
        from airflow_provider_getimg.durable.paid_video import FAILED_VIDEO
        from airflow_provider_getimg.durable.video_polling import MIN_POLL_INTERVAL
        from airflow_provider_getimg.s3.labels import checked_labels

        max_cost = checked_max_cost(self.max_cost)
        labels = checked_labels(self.labels)
        timeout = checked_seconds("timeout", self.timeout)
        poll_interval = checked_seconds("poll_interval", self.poll_interval, MIN_POLL_INTERVAL)
        rate_limit_wait = checked_seconds("rate_limit_wait", self.rate_limit_wait)
        on_unknown_outcome = checked_choice("on_unknown_outcome", self.on_unknown_outcome, UNKNOWN_OUTCOME)
        on_failed_video = checked_choice("on_failed_video", self.on_failed_video, FAILED_VIDEO)
        request = self._request(VideoRequest)
        ledger = self._ledger(context, request.fingerprint)
        paid = self._paid_video(ledger, on_unknown_outcome, on_failed_video)
        with self.hook:
            is_found = paid.find()
            if not is_found:
                self._check_model(request.checked, max_cost)
                paid.submit(self.hook.client, request.resolve(self._s3_client), rate_limit_wait)
            now = time.time()
            wait: VideoWait = {
                "video_id": paid.id,
                "fingerprint": request.fingerprint,
                "started": now,
                "until": now + timeout,
                "poll_interval": poll_interval,
                "record": request_record(request.checked.to_json(), labels),
            }
            # A video that was just submitted is polled after a pause.
            return self._wait(context, paid, wait, poll_first=is_found)

    @with_retry_policy
    def execute_complete(self, context: Context, event: VideoWait) -> dict[str, Any]:
        """
        Poll the video that the trigger waited for, and return the API's response.

        Submits nothing, whatever the templates render to now.

        :raises GetimgError: Its message says what happened and whether it was billed.
        """
        ledger = self._ledger(context, event["fingerprint"], is_resumed=True)
        # They were valid when the video was submitted. What they render to now must not prevent its delivery.
        paid = self._paid_video(ledger, str(self.on_unknown_outcome), str(self.on_failed_video))
        paid.resume(event["video_id"])
        with self.hook:
            return self._wait(context, paid, event, poll_first=True)

    def _paid_video(self, ledger: Ledger, on_unknown_outcome: str, on_failed_video: str) -> PaidVideo:
        from airflow_provider_getimg.durable.paid_video import PaidVideo

        return PaidVideo(
            ledger,
            on_unknown_outcome=on_unknown_outcome,
            on_failed_video=on_failed_video,
            killed=self._killed,
            all_gone=self._all_gone,
        )

    def _check_model(self, request: VideoRequest, max_cost: Decimal | None) -> None:
        """Check a request against the catalogue, if there is something to check."""
        from airflow_provider_getimg.api.pricing import check_price, named, video_price
        from airflow_provider_getimg.api.references import (
            check_duration,
            check_references,
            exceeds_documented_references,
        )

        if max_cost is None and not exceeds_documented_references(request):
            return
        model = self.hook.client.get_model(request.model)
        check_references(model, request)
        check_duration(model, request.duration)
        if max_cost is not None:
            price = video_price(model, request.resolution, request.duration, request.sound)
            check_price(price, named("A video", model, request.resolution), max_cost)

    def _wait(
        self, context: Context, paid: PaidVideo, wait: VideoWait, *, poll_first: bool
    ) -> dict[str, Any]:
        """Poll the video until it is completed, here or in the triggerer."""
        from airflow_provider_getimg.api.errors import (
            TRANSIENT_ERRORS,
            GetimgError,
            KilledError,
            VideoFailedError,
        )
        from airflow_provider_getimg.durable.video_polling import Polling, VideoLog

        polling = Polling(wait["poll_interval"], wait["until"])
        log = VideoLog(paid.id, wait["started"], self.log)
        self._video_id = paid.id
        pause = 0.0 if poll_first else polling.pause()
        while paid.generation is None:
            if pause and self.deferrable:
                self._defer(wait)
            if self._killed.wait(pause):
                raise KilledError(
                    f"The task was terminated while video {paid.id} was being generated; the API can't cancel it. A retry or a "
                    "Clear resumes waiting for it.",
                    billed="unknown",
                )
            try:
                log.state(paid.poll(self.hook.client))
                pause = polling.pause()
            except TRANSIENT_ERRORS as error:
                pause = polling.pause(error)
                log.failed(error, pause)
            except VideoFailedError:
                raise
            except GetimgError as error:
                raise log.refused_error(error, paid.address) from None
            if paid.generation is None and polling.is_over:
                raise log.pending_error()
        response = self._push(context, paid.generation, wait["record"], paid.replaced_cost)
        # Not recorded as delivered if killed, most likely by a Clear: its new run wipes the XCom and reuses this video for free.
        if not self._killed.is_set():
            paid.delivered()
        return response

    def _defer(self, wait: VideoWait) -> None:
        from airflow_provider_getimg.triggers.video import GetimgVideoTrigger

        self.defer(
            # The event returns ``wait``: ``dag.test()`` drops the kwargs of a deferral.
            trigger=GetimgVideoTrigger(wait=wait, getimg_conn_id=self.getimg_conn_id),
            method_name="execute_complete",
            timeout=timedelta(seconds=max(0.0, wait["until"] - time.time()) + _TRIGGERER_GRACE),
        )

    def on_kill(self) -> None:
        """Submit nothing more, and stop waiting. The API can't cancel: a submitted video is still generated and billed."""
        call_from_handler(self._killed.set)
        client = self.hook.__dict__.get("client")
        if client is not None and client.in_flight and not self._video_id:
            call_from_handler(
                self.log.warning,
                "The task was terminated with a request in flight, which may be billed. It waits for the response until Airflow ends it.",
            )
        elif self._video_id:
            call_from_handler(
                self.log.warning,
                "The task was terminated. Video %s is still being generated and will be billed; a retry or a Clear returns it.",
                self._video_id,
            )
