# SPDX-License-Identifier: Apache-2.0
"""Save generated files to S3 before their signed URLs expire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.hooks.masking import MaskedTemplatesMixin, unwrap
from airflow_provider_getimg.records import IMAGES, push_record
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.s3.s3_output import S3OutputMixin
from airflow_provider_getimg.version_compat import RetryPolicyMixin, with_retry_policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk import RetryPolicy

    from airflow_provider_getimg.api.types import Generation
    from airflow_provider_getimg.s3.copier import SavedFile
    from airflow_provider_getimg.s3.plan import TransferItem

GIB = 1024**3


class TransferToS3Operator(S3OutputMixin, MaskedTemplatesMixin, RetryPolicyMixin, BaseOperator):
    """
    Save the files of generations to S3.

    Files are downloaded ``concurrency`` at once, those closest to their ``deletes_at`` first, into memory (up to 5 MiB) or a
    temporary file (larger ones). Each is verified in full and written with one ``PutObject``: an object appears complete or
    not at all, and S3 itself verifies the SHA-256.

    The files are paid for, so unexpected headers, unexpected types and missing fields only log warnings; a download that is
    text or empty is not saved. Saving is free. Failed downloads are retried within the try, and a task retry resumes: files
    already saved are not downloaded again. One failed file doesn't stop the others; the task fails at the end and logs a
    table of all files. A file that the server says is gone (410, or 401, 403 or 404 after its ``deletes_at``) is not
    retried: only the upstream task can regenerate it, and that is billed.

    The XCom is a list with one row per file: ``uri``, ``bucket``, ``key``, ``bytes``, ``sha256``, ``etag``,
    ``mime_type`` (detected from the bytes), ``width``, ``height``, ``generation_id``, ``index``, ``model``, ``request`` (if
    it came with the generation), ``cost`` (the generation's cost in USD on its first file, 0 on the others) and
    ``aws_conn_id``. The list is empty if ``generation`` is an empty list. A second XCom, ``getimg_images``, is the number of
    rows. If every upstream task was skipped, so is this one.

    Each object carries metadata: ``getimg-generation-id``, ``getimg-index``, ``getimg-model``, ``getimg-deletes-at``,
    ``getimg-sha256`` and ``getimg-dag``. Each object is in the outlets' events, with generation id, cost, bytes and SHA-256: for
    an ``AssetAlias``, as its own asset ``s3://bucket/key``; for an ``Asset``, as an entry in ``extra["files"]``.

    :param generation: The output of a :class:`~airflow_provider_getimg.operators.image.GenerateImageOperator` or
        :class:`~airflow_provider_getimg.operators.video.GenerateVideoOperator`, mapped or not, or a list of such outputs: pass
        ``.output``. None, the output of a skipped task, is ignored. (templated)
    :param s3_key: The object's key, or a full ``s3://bucket/key``. Besides Jinja, it may contain the placeholders
        ``{generation_id}``, ``{index}`` (0 for the first file of a generation), ``{extension}`` (``png``, ``jpg``,
        ``webp``; from the response's MIME type, or from the bytes if that type is unknown), ``{model}``, ``{width}``,
        ``{height}`` (in pixels; ``unknown`` if the API doesn't say), ``{sha256}``, and each of the generation's
        ``labels``. (templated)
    :param s3_bucket: The bucket, if ``s3_key`` is not a full URI. (templated)
    :param if_exists: What to do if an object exists at the key. ``"skip"`` (default): identical content counts as saved;
        different content is an error that names both. ``"replace"``: overwrite it; needs no read permission.
        ``"fail"``: an error, unless this very file was saved there. The check is atomic if the store supports conditional
        writes. (templated)
    :param concurrency: How many downloads run at once. Default 8. The same number of files may be uploading to S3 meanwhile,
        each in memory (up to 5 MiB) or in the worker's temporary folder. (templated)
    :param max_bytes: The largest file to accept, in bytes, at most 5 GiB. Default 2 GiB. (templated)
    :param aws_conn_id: The AWS connection; None for boto3's own credentials. Default ``aws_default``. (templated)
    :param getimg_conn_id: The getimg.ai connection, for its proxy and its timeout, which applies to each file. The API key
        is not sent: the URL itself is the credential. Private addresses are refused unless they are the base URL's own or
        in ``allowed_networks``. Default ``getimg_default``. (templated)
    :param extra_args: Options of S3's ``PutObject`` for each object, such as ``StorageClass``,
        ``ServerSideEncryption``, ``Tagging``, ``Metadata``. ``ContentType`` is the file's MIME type unless given here.
        (templated)
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
    redacted_fields = ("generation",)
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

    @with_retry_policy
    def execute(self, context: Context) -> list[dict[str, Any]]:
        """
        Save each file and return one row per file.

        :raises GetimgError: Its message says which file failed, why, what it cost, and what to do.
        """
        from airflow.providers.common.compat.sdk import AirflowSkipException

        from airflow_provider_getimg.api.errors import GetimgError
        from airflow_provider_getimg.s3.plan import parse_generations, total_cost

        generations, gaps = parse_generations(unwrap(self.generation))
        if gaps and not generations:
            raise AirflowSkipException("All upstream tasks were skipped: there is nothing to save.")
        if gaps:
            self.log.info("Outputs of skipped tasks (None) are left out: %d.", gaps)
        if not generations:
            self.log.info("generation is an empty list: there is nothing to save.")
            return []
        try:
            saved = self._save(generations)
        except GetimgError as error:
            if error.generation_ids:
                raise
            raise error.with_bill(
                [generation.id for generation in generations], total_cost(generations)
            ) from None
        self._remember(context, saved)
        if self.do_xcom_push:
            push_record(context, IMAGES, len(saved), self.log)
        return self._rows(saved)

    def _rows(self, saved: Sequence[SavedFile]) -> list[dict[str, Any]]:
        """Return the rows of the XCom."""
        rows, counted = [], set()
        for file in saved:
            row = file.row()
            if file.item.request is not None:
                row["request"] = file.item.request
            # A generation is billed once, however many files it has.
            cost = 0 if file.item.generation_id in counted else file.item.cost
            counted.add(file.item.generation_id)
            row["cost"] = None if cost is None else float(cost)
            row["aws_conn_id"] = self.aws_conn_id
            rows.append(row)
        return rows

    def _s3_connections(self) -> int:
        from airflow_provider_getimg.api.parameters import checked_count
        from airflow_provider_getimg.s3.save_many import threads_for

        return threads_for(checked_count("concurrency", self.concurrency))

    def _save(self, generations: Sequence[Generation]) -> list[SavedFile]:
        from airflow_provider_getimg.api.parameters import checked_choice, checked_count, checked_file_size
        from airflow_provider_getimg.s3.copier import IF_EXISTS
        from airflow_provider_getimg.s3.plan import plan
        from airflow_provider_getimg.s3.save_many import save_many
        from airflow_provider_getimg.s3.store import S3Store

        if_exists = checked_choice("if_exists", self.if_exists, IF_EXISTS)
        concurrency = checked_count("concurrency", self.concurrency)
        max_bytes = checked_file_size("max_bytes", self.max_bytes)
        items = plan(generations, self.s3_key, self.s3_bucket)
        self._warn_of_short_time(items)
        store = S3Store(self.s3_hook, self.extra_args, self.dag_id)
        with self._copier(store, if_exists=if_exists, max_bytes=max_bytes, concurrency=concurrency) as copier:
            copier.list_keys(items)
            return save_many(
                items, copier.save, concurrency=concurrency, abort=self._abort_copies, log=self.log
            )

    def _remedy(self) -> str:
        upstream = ", ".join(sorted(self.upstream_task_ids)) or "the one upstream"
        return f"To regenerate it (billed), clear the task that generated it: {upstream}."

    def _warn_of_short_time(self, items: list[TransferItem]) -> None:
        """Warn if a file will be gone before the last retry could copy it."""
        known = [ends for item in items if (ends := item.media.deletes_at) is not None]
        left = min(known) - datetime.now(UTC) if known else timedelta(0)
        needed = (self.retries or 0) * self.retry_delay
        if timedelta(0) < left < needed:
            self.log.warning(
                "Files are deleted in %s, and %d retries %s apart may need %s: a shorter retry_delay is safer.",
                str(left).partition(".")[0],
                self.retries,
                self.retry_delay,
                needed,
            )

    def on_kill(self) -> None:
        """Abort the downloads in flight. Saved files stay, and a retry resumes from there."""
        self._abort_copies()
