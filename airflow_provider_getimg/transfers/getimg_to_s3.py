# SPDX-License-Identifier: Apache-2.0
"""Save generated files to S3 before their signed URLs expire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.masking import MaskedTemplatesMixin, revealed
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.transfers.saves_to_s3 import SavesToS3Mixin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk import RetryPolicy

    from airflow_provider_getimg.transfers.copier import Saved
    from airflow_provider_getimg.transfers.download import Downloads
    from airflow_provider_getimg.transfers.plan import FileCopy

GIB = 1024**3


class TransferToS3Operator(SavesToS3Mixin, MaskedTemplatesMixin, BaseOperator):
    """
    Save the files of generations to S3.

    Files are streamed, ``concurrency`` at once, those nearest to their ``deletes_at`` first, with at most about 10 MiB of
    each in memory and nothing on disk. And an object appears complete or not at all: status, length, the first bytes and the
    size are checked on the way, and S3 itself compares the SHA-256.

    A copy costs nothing. Downloads that fail are repeated within the try, and a retry resumes: what is saved already is
    not downloaded again. One file that fails stops no other; the task fails at the end, with a table of them in the log. A
    file whose ``deletes_at`` has passed, or whose URL answers 401, 403, 404 or 410, is not retried: only the upstream task
    can make it anew, and that is billed.

    The XCom is a list with one row per file: ``uri``, ``bucket``, ``key``, ``bytes``, ``sha256``, ``etag``,
    ``mime_type``, ``width``, ``height``, ``generation_id``, ``index``, ``model``.

    Each object carries metadata: ``getimg-generation-id``, ``getimg-index``, ``getimg-model``, ``getimg-deletes-at`` and,
    up to 5 MiB, ``getimg-sha256``. Each is an event of the outlets: of an ``AssetAlias`` an asset
    ``s3://bucket/key`` of its own, of an ``Asset`` an entry in the event's ``extra["files"]``; with generation id, cost, bytes
    and SHA-256.

    :param generation: What :class:`~airflow_provider_getimg.operators.image.GenerateImageOperator` returned,
        or a list of it: the output of a mapped task. (templated)
    :param s3_key: The object's key, or a full ``s3://bucket/key``. Beside Jinja it may hold the placeholders
        ``{generation_id}``, ``{index}`` (0 for the first file of a generation), ``{extension}`` (``png``, ``jpg``,
        ``webp``), ``{model}``, ``{width}``, ``{height}`` (in pixels) and ``{sha256}`` (a file of more than 5 MiB is then
        downloaded twice). (templated)
    :param s3_bucket: The bucket, where ``s3_key`` is no full URI. (templated)
    :param if_exists: What to do where an object lies at the key. ``"skip"`` (default): the same bytes are done already,
        other bytes are an error that names both. ``"replace"``: write over it; needs no permission to read. ``"fail"``: an
        error, unless this very file was saved there. Where the store knows conditional writes, no object can slip in
        between. (templated)
    :param concurrency: How many downloads run at once. Default 8. As many files may be on their way into S3 beside them.
        (templated)
    :param max_bytes: The largest file to accept, in bytes. Default 2 GiB. (templated)
    :param aws_conn_id: The AWS connection; None for boto3's own credentials. (templated)
    :param getimg_conn_id: The getimg.ai connection, for its proxy and its timeout, which holds for each file. The API key
        is not sent: the URL itself is the credential. Private addresses are only reached where the connection's base URL
        is at one. (templated)
    :param extra_args: Options of S3's ``PutObject`` for each object, such as ``StorageClass``,
        ``ServerSideEncryption``, ``Tagging``, ``Metadata``. ``ContentType`` is the file's MIME type unless it is given
        here. (templated)
    :param retries: Default 3.
    :param retry_policy: Default: :class:`~airflow_provider_getimg.retry.GetimgRetryPolicy`.
    """

    template_fields: Sequence[str] = (
        "generation",
        "s3_key",
        "s3_bucket",
        "if_exists",
        "concurrency",
        "max_bytes",
        "aws_conn_id",
        "getimg_conn_id",
        "extra_args",
    )
    template_fields_renderers = {"generation": "json", "extra_args": "json"}
    concealed_fields = ("generation",)
    ui_color = "#e0f0e3"

    def __init__(
        self,
        *,
        generation: Any,
        s3_key: str,
        s3_bucket: str | None = None,
        if_exists: str = "skip",
        concurrency: int | str = 8,
        max_bytes: int | str = 2 * GIB,
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
        self.if_exists = if_exists
        self.concurrency = concurrency
        self.max_bytes = max_bytes
        self.aws_conn_id = aws_conn_id
        self.getimg_conn_id = getimg_conn_id
        self.extra_args = extra_args

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """
        Save each file, and return a row for each.

        :raises GetimgError: Its message says which file failed, why, and what to do.
        """
        from airflow_provider_getimg.parameters import checked_choice, checked_count
        from airflow_provider_getimg.transfers.copier import IF_EXISTS
        from airflow_provider_getimg.transfers.plan import plan

        if_exists = checked_choice("if_exists", self.if_exists, IF_EXISTS)
        concurrency = checked_count("concurrency", self.concurrency)
        max_bytes = checked_count("max_bytes", self.max_bytes)
        copies = plan(revealed(self.generation), self.s3_key, self.s3_bucket)
        self._warn_of_short_time(copies)
        saved = self._save(context, copies, if_exists, concurrency, max_bytes)
        self._remember(context, saved)
        return [file.row() for file in saved]

    def _s3_connections(self) -> int:
        from airflow_provider_getimg.parameters import checked_count
        from airflow_provider_getimg.transfers.copy_many import threads_for

        return threads_for(checked_count("concurrency", self.concurrency))

    def _save(
        self, context: Context, copies: list[FileCopy], if_exists: str, concurrency: int, max_bytes: int
    ) -> list[Saved]:
        from airflow_provider_getimg.transfers.copier import Copier
        from airflow_provider_getimg.transfers.copy_many import copy_many
        from airflow_provider_getimg.transfers.download import Downloads
        from airflow_provider_getimg.transfers.s3_store import S3Store
        from airflow_provider_getimg.transfers.unfinished_uploads import UnfinishedUploads

        store = S3Store(self.s3_hook.get_conn(), self.extra_args)
        for copy in copies:
            store.object_args(copy)
        state = context.get("task_state_store")
        unfinished = UnfinishedUploads(state, self.log) if state is not None else None
        if unfinished is not None:
            unfinished.abort_left(store)
        with Downloads(
            self.hook.settings, self._remedy(), max_bytes=max_bytes, concurrency=concurrency
        ) as downloads:
            self._downloads: Downloads = downloads
            copier = Copier(
                store,
                downloads,
                if_exists=if_exists,
                unfinished=unfinished,
                killed=self._killed,
                log=self.log,
            )
            try:
                return copy_many(
                    copies, copier.save, concurrency=concurrency, abort=self._abort, log=self.log
                )
            finally:
                # Not where time is up: S3 may be what took it, and the next try does it.
                if unfinished is not None and not self._killed.is_set():
                    unfinished.abort_left(store)

    def _remedy(self) -> str:
        upstream = ", ".join(sorted(self.upstream_task_ids)) or "the one upstream"
        return f"To make it anew, which is billed, clear the task that generated it: {upstream}."

    def _warn_of_short_time(self, copies: list[FileCopy]) -> None:
        """Warn where a file will be gone before the last retry could copy it."""
        left = min(copy.media.deletes_at for copy in copies) - datetime.now(UTC)
        needed = (self.retries or 0) * self.retry_delay
        if timedelta(0) < left < needed:
            self.log.warning(
                "Files are deleted in %s, and %d retries %s apart may need %s: a shorter retry_delay is safer.",
                str(left).partition(".")[0],
                self.retries,
                self.retry_delay,
                needed,
            )

    def _abort(self) -> None:
        self._killed.set()
        downloads: Downloads | None = getattr(self, "_downloads", None)
        if downloads is not None:
            downloads.abort()

    def on_kill(self) -> None:
        """End the downloads in flight. What is saved stays, and a retry goes on from there."""
        self._abort()
