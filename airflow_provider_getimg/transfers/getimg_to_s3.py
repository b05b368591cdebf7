# SPDX-License-Identifier: Apache-2.0
"""Save generated files to S3 before their signed URLs expire."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.links import OpenInS3Link, console_url
from airflow_provider_getimg.masking import MaskedTemplatesMixin, mask_signed_urls
from airflow_provider_getimg.retry import RETRY_POLICY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk import RetryPolicy
    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.transfers.download import Downloads
    from airflow_provider_getimg.transfers.plan import FileCopy


class TransferToS3Operator(MaskedTemplatesMixin, BaseOperator):
    """
    Save the files of generations to S3.

    Each file is streamed: no file is whole in memory or on disk, and an object appears complete or not
    at all. A file whose ``deletes_at`` has passed, or whose URL answers 401, 403, 404 or 410, fails the task
    at once, without retries: only the upstream task can make it anew, and that is billed. A copy itself
    costs nothing, and a retry repeats it.

    The XCom is a list with one row per file: ``uri``, ``bucket``, ``key``, ``bytes``, ``sha256``, ``etag``,
    ``mime_type``, ``width``, ``height``, ``generation_id``, ``index``, ``model``.

    :param generation: What :class:`~airflow_provider_getimg.operators.image.GenerateImageOperator` returned,
        or a list of it: the output of a mapped task. (templated)
    :param s3_key: The object's key, or a full ``s3://bucket/key``. Beside Jinja it may hold the placeholders
        ``{generation_id}``, ``{index}`` (0 for the first file of a generation), ``{extension}`` (``png``, ``jpg``,
        ``webp``) and ``{model}``. (templated)
    :param s3_bucket: The bucket, where ``s3_key`` is no full URI. (templated)
    :param aws_conn_id: The AWS connection; None for boto3's own credentials. (templated)
    :param getimg_conn_id: The getimg.ai connection, for its proxy and time-out. The API key is not sent: the
        URL itself is the credential. (templated)
    :param extra_args: Options of S3's ``PutObject`` for each object, such as ``StorageClass``,
        ``ServerSideEncryption``, ``Tagging``, ``Metadata``. ``ContentType`` is set to the file's MIME type unless it
        is given here. (templated)
    """

    template_fields: Sequence[str] = (
        "generation",
        "s3_key",
        "s3_bucket",
        "aws_conn_id",
        "getimg_conn_id",
        "extra_args",
    )
    template_fields_renderers = {"generation": "json", "extra_args": "json"}
    operator_extra_links = (OpenInS3Link(),)
    ui_color = "#e0f0e3"

    def __init__(
        self,
        *,
        generation: Any,
        s3_key: str,
        s3_bucket: str | None = None,
        aws_conn_id: str | None = "aws_default",
        getimg_conn_id: str = GetimgHook.default_conn_name,
        extra_args: Mapping[str, Any] | None = None,
        retries: int | None = 3,
        retry_policy: RetryPolicy | None = RETRY_POLICY,
        **kwargs: Any,
    ) -> None:
        super().__init__(retries=retries, retry_policy=retry_policy, **kwargs)
        self.generation = generation
        self.s3_key = s3_key
        self.s3_bucket = s3_bucket
        self.aws_conn_id = aws_conn_id
        self.getimg_conn_id = getimg_conn_id
        self.extra_args = extra_args
        #: What the "Open in S3" link leads to, once something was saved.
        self.s3_console_url = ""

    @cached_property
    def s3_hook(self) -> S3Hook:
        """The hook for ``aws_conn_id``."""
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        return S3Hook(aws_conn_id=self.aws_conn_id)

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """
        Save each file, and return a row for each.

        :raises GetimgError: Its message says which file failed, why, and what to do.
        """
        from airflow_provider_getimg.transfers.download import Downloads
        from airflow_provider_getimg.transfers.plan import plan
        from airflow_provider_getimg.transfers.s3_upload import checked_extra_args

        copies = plan(self.generation, self.s3_key, self.s3_bucket)
        # Again, after rendering: the output of a mapped task is a sequence that is only read here.
        mask_signed_urls([copy.media.url for copy in copies])
        settings = GetimgHook(getimg_conn_id=self.getimg_conn_id).settings
        client: S3Client = self.s3_hook.get_conn()
        extra_args = checked_extra_args(client, self.extra_args)
        with Downloads(settings, self._remedy()) as downloads:
            for copy in copies:
                downloads.check_expiry(copy)
            rows = [self._save(copy, downloads, client, extra_args) for copy in copies]
        self._remember_console_url(client, copies)
        return rows

    def _save(
        self, copy: FileCopy, downloads: Downloads, client: S3Client, extra_args: Mapping[str, Any]
    ) -> dict[str, Any]:
        from airflow_provider_getimg.transfers.s3_upload import S3Upload

        args = {"ContentType": copy.media.mime_type, **extra_args}
        with downloads.stream(copy) as chunks, S3Upload(client, copy.bucket, copy.key, args) as upload:
            for chunk in chunks:
                upload.write(chunk)
            etag = upload.complete()
        self.log.info("Saved %s: %s, %d bytes.", copy.name, copy.uri, upload.size)
        return {
            "uri": copy.uri,
            "bucket": copy.bucket,
            "key": copy.key,
            "bytes": upload.size,
            "sha256": upload.sha256,
            "etag": etag,
            "mime_type": copy.media.mime_type,
            "width": copy.media.width,
            "height": copy.media.height,
            "generation_id": copy.generation_id,
            "index": copy.index,
            "model": copy.model,
        }

    def _remedy(self) -> str:
        upstream = ", ".join(sorted(self.upstream_task_ids))
        return f"To make it anew, which is billed, clear the task that generated it: {upstream or 'upstream of this'}."

    def _remember_console_url(self, client: S3Client, copies: list[FileCopy]) -> None:
        endpoint = client.meta.endpoint_url
        # A store of one's own has no page in Amazon's console.
        if "amazonaws.com" in endpoint:
            self.s3_console_url = console_url(
                copies[0].bucket, [copy.key for copy in copies], client.meta.region_name or ""
            )
