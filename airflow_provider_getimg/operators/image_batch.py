# SPDX-License-Identifier: Apache-2.0
"""Generate many images in one task, and save each to S3 as soon as it arrives."""

from __future__ import annotations

import contextlib
import math
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.hooks.masking import MaskedTemplatesMixin, unwrap
from airflow_provider_getimg.records import COST, IMAGES, push_record
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.s3.s3_output import S3OutputMixin
from airflow_provider_getimg.version_compat import RetryPolicyMixin, with_retry_policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from decimal import Decimal

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk import RetryPolicy

    from airflow_provider_getimg.api.errors import GetimgError
    from airflow_provider_getimg.batch.history import History
    from airflow_provider_getimg.batch.report import BatchResults
    from airflow_provider_getimg.batch.rows import Row
    from airflow_provider_getimg.batch.run import BatchRun
    from airflow_provider_getimg.batch.settings import BatchSettings
    from airflow_provider_getimg.batch.stop import Stop
    from airflow_provider_getimg.s3.store import S3Store

GIB = 1024**3


class GenerateImagesToS3Operator(S3OutputMixin, MaskedTemplatesMixin, RetryPolicyMixin, BaseOperator):
    """
    Generate an image for each row of a list, many at once, and save each to S3 as soon as it arrives.

    It uses one task and one worker slot, and puts no signed URL into XCom. For each row, it does what
    :class:`~airflow_provider_getimg.operators.image.GenerateImageOperator` and
    :class:`~airflow_provider_getimg.transfers.getimg_to_s3.TransferToS3Operator` do for one image.

    The XCom is a summary: ``requested``, ``saved`` (rows whose files are in S3), ``reused`` (of these, rows that an earlier
    try paid for, or that already existed), ``failed``, ``not_sent``, ``total_cost`` (in USD, over all tries since the last Clear,
    plus images billed but not saved before it), ``manifest`` (the URI of a JSON Lines object with a line for each row:
    ``row``, ``outcome``, ``request``, ``uri``, ``sha256``, ``bytes``, ``mime_type``, ``generation_id``, ``cost``, ``error``),
    ``aws_conn_id``, and, for up to 100 files, ``uris``. Two more XComs are ``getimg_images``, the number of saved images, and
    ``getimg_cost``, what was billed, as for one image; each is pushed only if there is something to report. A batch that fails
    pushes all of these, too, unless its input is invalid.

    Each row is billed. Each try records what it sends, receives and saves in the task's state as it happens:

    - A **retry**, even after a killed worker, resumes: saved images stay, billed ones only need saving, and
      ``on_unknown_outcome`` decides about requests whose response was lost. A retry that can save none of the billed images
      sends nothing new.
    - A **Clear** saves the images that were billed but never saved, without paying again while their URLs work, and
      regenerates those that were delivered. With ``if_exists="skip"``, a row is not billed if its key already holds an object
      made from the same request; the key must be known in advance, without ``{generation_id}``, ``{sha256}``, ``{width}`` or
      ``{height}``.

    Before the first request, all rows and keys are checked and the manifest is written: if S3 refuses it, nothing is sent. A
    failed row doesn't stop the others. Sending stops after a permanent refusal by S3, a rejected API key or an empty account
    (401, 402), five consecutive lost responses or unsaved files, or at ``max_cost``; responses that have arrived are saved. A
    429 fails no row: the request rate adapts to the account's limits.

    :param requests: A list of dicts with the fields of ``GenerateImageOperator`` (``model``, ``prompt``, ``aspect_ratio``,
        ``resolution``, ``output_format``, ``images``) and ``labels``, a dict of your own values; an upstream task's output;
        or the ``s3://bucket/key`` of a JSON Lines file with one request per line, read with ``aws_conn_id``. At most 100,000
        requests. (templated)
    :param s3_key: The key of each object, or a full ``s3://bucket/key``. Placeholders: those of ``TransferToS3Operator``, plus
        ``{row}`` (from 0, such as ``{row:04}``), ``{prompt}``, ``{aspect_ratio}``, ``{resolution}``, ``{output_format}`` and each
        label. (templated)
    :param s3_bucket: The bucket, if ``s3_key`` is not a full URI. (templated)
    :param defaults: Fields for requests that don't set them. (templated)
    :param concurrency: The maximum number of requests in flight. Default 8. (templated)
    :param transfer_concurrency: The maximum number of concurrent downloads, besides the requests. Default 8. (templated)
    :param max_cost: The most that the batch may cost, in USD, over all tries since the last Clear. It is checked against the
        catalogue before the first request, and enforced while the batch runs. Default: no limit. (templated)
    :param check_balance: Whether to check, before the first request, that the account's balance covers the price of all rows to
        send. If it doesn't, or a price is unknown, the task fails. Default False. (templated)
    :param max_failures: How many rows may fail without failing the task: a whole number of rows, or a share, below 1 such as
        ``0.02`` or in percent such as ``"2%"``, rounded down. Default 0. (templated)
    :param on_unknown_outcome: What to do about a row whose request may have been billed but whose response was lost, or whose
        paid response is recorded but whose files are gone. ``"fail"`` (default): the row fails. ``"resubmit"``: a retry sends
        the request again, which may pay twice. (templated)
    :param rate_limit_wait: Maximum seconds that a try waits when the API asks it to. A longer wait becomes a retry, which
        frees the worker slot; the last try waits itself. Default 300. (templated)
    :param if_exists: What to do if an object already exists at a row's key, as for ``TransferToS3Operator``. With ``"skip"``
        (default) and ``"fail"``, it is found before the request is sent, if the key is known in advance. (templated)
    :param manifest_key: The manifest's key, or a full URI. Default: ``manifests/<dag>/<run>/<task>.jsonl``, with a mapped
        task's map index (``<task>-3.jsonl``), in the folder that the keys share. A custom key must differ between mapped
        tasks: use ``{{ ti.map_index }}``. (templated)
    :param max_bytes: The largest file to accept, in bytes, at most 5 GiB. Default 2 GiB. (templated)
    :param extra_args: Options of S3's ``PutObject`` for each object, as for ``TransferToS3Operator``. (templated)
    :param aws_conn_id: The AWS connection for all reads from and writes to S3; None for boto3's own credentials.
        A ``state_folder`` may name another. Default ``aws_default``. (templated)
    :param getimg_conn_id: The getimg.ai connection. Default ``getimg_default``. (templated)
    :param retries: Default 3.
    :param retry_policy: Default: :class:`~airflow_provider_getimg.retry.GetimgRetryPolicy`.
    """

    template_fields: Sequence[str] = (
        "requests",
        "s3_key",
        "s3_bucket",
        "defaults",
        "concurrency",
        "transfer_concurrency",
        "max_cost",
        "check_balance",
        "max_failures",
        "on_unknown_outcome",
        "rate_limit_wait",
        "if_exists",
        "manifest_key",
        "max_bytes",
        "extra_args",
        "aws_conn_id",
        "getimg_conn_id",
    )
    template_fields_renderers = {"requests": "json", "defaults": "json", "extra_args": "json"}
    redacted_fields = ("requests", "defaults")
    ui_color = "#e0e6f3"

    def __init__(
        self,
        *,
        requests: Any,
        s3_key: str,
        s3_bucket: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        concurrency: int | str = 8,
        transfer_concurrency: int | str = 8,
        max_cost: Decimal | float | str | None = None,
        check_balance: bool | str = False,
        max_failures: float | str = 0,
        on_unknown_outcome: str = "fail",
        rate_limit_wait: float | str = 300.0,
        if_exists: str = "skip",
        manifest_key: str | None = None,
        max_bytes: int | str = 2 * GIB,
        extra_args: Mapping[str, Any] | None = None,
        aws_conn_id: str | None = "aws_default",
        getimg_conn_id: str = GetimgHook.default_conn_name,
        retries: int | None = 3,
        retry_policy: RetryPolicy | None = RETRY_POLICY,
        **kwargs: Any,
    ) -> None:
        super().__init__(retries=retries, retry_policy=retry_policy, **kwargs)
        self.requests = requests
        self.s3_key = s3_key
        self.s3_bucket = s3_bucket
        self.defaults = defaults
        self.concurrency = concurrency
        self.transfer_concurrency = transfer_concurrency
        self.max_cost = max_cost
        self.check_balance = check_balance
        self.max_failures = max_failures
        self.on_unknown_outcome = on_unknown_outcome
        self.rate_limit_wait = rate_limit_wait
        self.if_exists = if_exists
        self.manifest_key = manifest_key
        self.max_bytes = max_bytes
        self.extra_args = extra_args
        self.aws_conn_id = aws_conn_id
        self.getimg_conn_id = getimg_conn_id

    @with_retry_policy
    def execute(self, context: Context) -> dict[str, Any]:
        """
        Generate and save all rows that are not saved yet, and return the summary.

        :raises GetimgError: Its message says what failed, what it cost, and what to do.
        """
        from airflow_provider_getimg.api.errors import BatchIncompleteError, GetimgError
        from airflow_provider_getimg.batch import manifest
        from airflow_provider_getimg.batch.history import History
        from airflow_provider_getimg.batch.report import checked_max_failures
        from airflow_provider_getimg.batch.rows import read_rows
        from airflow_provider_getimg.durable.earlier_bill import with_earlier_bill
        from airflow_provider_getimg.durable.journal import Journal
        from airflow_provider_getimg.durable.task_state import task_state
        from airflow_provider_getimg.durable.tries import Try
        from airflow_provider_getimg.s3.connection import s3_client
        from airflow_provider_getimg.s3.keys import KeyTemplate

        # Create it here, not in the signal handler that may need it first.
        _ = self._stop
        this_try = Try.of(context)
        if this_try.is_first:
            # Fail on an invalid setting before anything is read.
            _ = self._settings
        with (
            self.hook,
            Journal(task_state(context, self.hook, self.aws_conn_id), this_try, self.log) as journal,
        ):
            try:
                _ = self._settings
                template = KeyTemplate.parse(self.s3_key, self.s3_bucket)
                rows = read_rows(
                    unwrap(self.requests),
                    unwrap(self.defaults),
                    template,
                    lambda: s3_client(self.s3_hook),
                )
                max_failures = checked_max_failures(self.max_failures, len(rows))
                location = manifest.location(self.manifest_key, template, context)
            except GetimgError as error:
                entries = journal.entries()
                saved = [entry for key, entry in entries.items() if journal.is_saved(key)]
                unsaved = [entry for key, entry in entries.items() if not journal.is_saved(key)]
                raise with_earlier_bill(error, unsaved, saved) from None
            uri = f"s3://{location[0]}/{location[1]}"
            history = History(rows, context, journal, self.log)
            results, manifest_error = self._run(context, rows, history, location)
        try:
            self._remember(context, results.saved_files)
            results.check(max_failures, uri, manifest_error)
        except BaseException as error:
            if not isinstance(error, BatchIncompleteError):
                # Such as a timeout: its message has no bill.
                self.log.error("%s", results.bill())
            self._push(context, results, uri if manifest_error is None else None)
            raise
        self.log.info(
            "%d of %d rows are saved, %d of them reused; %s USD in total. Manifest: %s",
            results.count("saved", "reused"),
            len(rows),
            results.count("reused"),
            results.total_cost,
            uri,
        )
        if self.do_xcom_push:
            self._push_records(context, results)
        return self._summary(results, uri)

    @cached_property
    def _settings(self) -> BatchSettings:
        from airflow_provider_getimg.batch.settings import BatchSettings

        return BatchSettings.checked(self)

    def _s3_connections(self) -> int:
        return self._settings.senders + self._settings.uploaders

    def _run(
        self, context: Context, rows: list[Row], history: History, location: tuple[str, str]
    ) -> tuple[BatchResults, GetimgError | None]:
        """Run the batch and write its manifest, however the run ends. Return a storage or manifest error, too."""
        from airflow_provider_getimg.api.errors import CostLimitError, GetimgError, InsufficientBalanceError
        from airflow_provider_getimg.batch import manifest
        from airflow_provider_getimg.s3.store import S3Store

        stack = contextlib.ExitStack()
        try:
            store = S3Store(self.s3_hook, self.extra_args, self.dag_id)
            batch = stack.enter_context(self._batch(rows, history, store))
        except GetimgError as error:
            # If this try can't start, report what earlier tries did.
            earlier = history.results(error)
            self._push(context, earlier, None)
            if earlier.total_cost or earlier.billed or earlier.unknown_outcomes:
                earlier.check(0, None, error)
            raise

        with stack:
            try:
                batch.check()
                try:
                    # Free, and uses the images' own options: if this fails, they could not be saved either.
                    self._downloads.check_before_payment()
                    manifest.write(store, *location, batch.results.manifest(), context)
                    if rows:
                        manifest.check_writes(store, rows[0].template, *location)
                except GetimgError as error:
                    self._stop.set(error)
                    return batch.results, error
                results = batch.run()
                try:
                    manifest.write(store, *location, results.manifest(), context)
                except GetimgError as error:
                    return results, error
            except (CostLimitError, InsufficientBalanceError):
                # Raised before anything was sent or written.
                self._push(context, batch.results, None)
                raise
            except BaseException:
                # Re-raise the original error, and log the bill first.
                self.log.error("%s", batch.results.bill())
                written = None
                try:
                    manifest.write(store, *location, batch.results.manifest(), context)
                    written = f"s3://{location[0]}/{location[1]}"
                except GetimgError as error:
                    self.log.warning("The manifest could not be written: %s", error.message)
                self._push(context, batch.results, written)
                raise
        return results, None

    def _summary(self, results: BatchResults, manifest_uri: str | None) -> dict[str, Any]:
        """Return the value of the XCom."""
        return {**results.summary(manifest_uri), "aws_conn_id": self.aws_conn_id}

    def _push(self, context: Context, results: BatchResults, manifest_uri: str | None) -> None:
        """Push what a failed batch would have returned, for downstream tasks that run anyway."""
        if not self.do_xcom_push:
            return
        try:
            context["ti"].xcom_push(key="return_value", value=self._summary(results, manifest_uri))
        except Exception as error:
            self.log.warning("The summary could not be pushed to XCom: %s.", type(error).__name__)
        self._push_records(context, results)

    def _push_records(self, context: Context, results: BatchResults) -> None:
        if results.saved_files:
            push_record(context, IMAGES, len(results.saved_files), self.log)
        if results.billed or results.total_cost:
            push_record(context, COST, results.cost_record(), self.log)

    @contextlib.contextmanager
    def _batch(self, rows: list[Row], history: History, store: S3Store) -> Iterator[BatchRun]:
        """Set up what a run needs, and close it afterwards."""
        from airflow_provider_getimg.api.balance import check_balance
        from airflow_provider_getimg.batch.budget import Budget
        from airflow_provider_getimg.batch.limiter import RateLimiter
        from airflow_provider_getimg.batch.row_steps import ApiAccess
        from airflow_provider_getimg.batch.run import BatchRun

        settings, client = self._settings, self.hook.client
        limiter = RateLimiter(
            settings.concurrency,
            self._stop.event.is_set,
            self.log,
            # No retry follows the last try.
            math.inf if history.is_last_try else settings.rate_limit_wait,
        )
        balance_check = partial(check_balance, client) if settings.check_balance else None
        budget = Budget(settings.max_cost, client.get_model, balance_check)
        api = ApiAccess(client, limiter, budget, self._stop)
        with self._copier(
            store,
            if_exists=settings.if_exists,
            max_bytes=settings.max_bytes,
            concurrency=settings.transfer_concurrency,
        ) as copier:
            yield BatchRun(rows, settings, api, copier, history)

    @cached_property
    def _stop(self) -> Stop:
        # Not in __init__: an operator must stay copyable, and a lock is not.
        from airflow_provider_getimg.batch.stop import Stop

        return Stop()

    def _remedy(self) -> str:
        kept = ", as all rows are then" if self._settings.if_exists == "replace" else ""
        return f"To regenerate it (billed{kept}), clear this task."

    def on_kill(self) -> None:
        """
        Send nothing more. The task waits for requests in flight, and saves their images.

        It does so for up to two minutes, unless Airflow ends it sooner.
        """
        from airflow_provider_getimg.api.errors import KilledError

        self._stop.set(KilledError("The task was terminated."))
