# SPDX-License-Identifier: Apache-2.0
"""Shared by operators that generate one image or video: hooks, and pushing the response to XCom."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.durable.tries import Try
from airflow_provider_getimg.hooks.hook_mixin import HookMixin
from airflow_provider_getimg.hooks.masking import MaskedTemplatesMixin, mask_signed_urls, unwrap
from airflow_provider_getimg.records import COST, push_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from decimal import Decimal

    from airflow.providers.common.compat.sdk import Context
    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.api.types import Generation
    from airflow_provider_getimg.durable.ledger import Entry, Ledger
    from airflow_provider_getimg.durable.request_spec import RequestSpec, RequestT


class OneGenerationMixin(HookMixin, MaskedTemplatesMixin):
    """Mixin for operators with ``model``, ``getimg_conn_id`` and ``aws_conn_id``."""

    model: str
    images: Any
    aws_conn_id: str | None

    redacted_fields = ("images",)

    def _request(self, kind: type[RequestT]) -> RequestSpec[RequestT]:
        """Return the request that the rendered fields describe, and mask the signatures in its references in logs."""
        from airflow_provider_getimg.durable.request_spec import RequestSpec

        fields = {name: unwrap(getattr(self, name)) for name in kind.model_fields}
        mask_signed_urls(fields["images"])
        return RequestSpec(kind, fields)

    def _ledger(self, context: Context, fingerprint: str, *, is_resumed: bool = False) -> Ledger:
        """Return the ledger of the task's single request."""
        from airflow_provider_getimg.durable.ledger import EntryStore, Ledger
        from airflow_provider_getimg.durable.task_state import task_state

        state = task_state(context, self.hook, self.aws_conn_id, is_resumed=is_resumed)
        return Ledger(context, fingerprint, self.log, EntryStore(state))

    @contextmanager
    def _reporting_earlier(self, context: Context) -> Iterator[None]:
        """Add the bill for undelivered results of earlier tries to the error of a try that was not billed, or paid again."""
        from airflow_provider_getimg.api.errors import GetimgError, VideoFailedError
        from airflow_provider_getimg.durable.earlier_bill import with_earlier_bill

        try:
            yield
        except GetimgError as error:
            # A failed video's response says what it cost.
            if isinstance(error, VideoFailedError) or Try.of(context).is_first:
                raise
            try:
                entries = self._undelivered(context)
            except Exception:
                if error.billed != "no":
                    raise error from None
                raise error.with_bill([], None, unknown=1) from None
            if error.billed == "no" or any(entry.replaced for entry in entries):
                raise with_earlier_bill(error, entries) from None
            raise

    def _undelivered(self, context: Context) -> list[Entry]:
        """Return the entries of requests that earlier tries were, or may have been, billed for and did not deliver."""
        from airflow_provider_getimg.durable.ledger import EntryStore
        from airflow_provider_getimg.durable.task_state import task_state

        entry = EntryStore(task_state(context, self.hook, self.aws_conn_id)).read()
        # An entry from before a Clear counts only if it is not delivered yet. One from after it counts even if it was delivered:
        # the retry has wiped its XCom.
        if entry is None or (entry.epoch != Try.of(context).epoch and not entry.is_owed):
            return []
        return [entry]

    def _push(
        self, context: Context, generation: Generation, request: Mapping[str, Any], replaced_cost: Decimal
    ) -> dict[str, Any]:
        """
        Push a response with its request, and its cost, before it is recorded as delivered.

        Airflow's own push comes later, which is too late: a Clear must not pay again because a push failed.

        :param request: The request, as recorded in XCom.
        :param replaced_cost: What earlier generations cost that this one replaced, in USD.
        """
        response = {**generation.to_json(), "request": request}
        mask_signed_urls(response["data"])
        if not self.do_xcom_push:
            return response
        try:
            context["ti"].xcom_push(key="return_value", value=response)
        except Exception:
            self.log.error(
                "Generation %s was billed and could not be pushed to XCom. Neither a retry nor a Clear pays for it again.",
                generation.id,
            )
            raise
        cost = float((generation.cost or 0) + replaced_cost)
        record = {"cost": cost, "images": len(generation.data), "models": {request["model"]: cost}}
        push_record(context, COST, record, self.log)
        return response

    def _all_gone(self, generation: Generation) -> bool:
        from airflow_provider_getimg.api.errors import ConnectionConfigError
        from airflow_provider_getimg.api.parameters import FILE_MAX_BYTES
        from airflow_provider_getimg.s3.download import Downloads, is_past_deletion

        # A paid response is returned even if the connection has become invalid since.
        if not is_past_deletion(generation):
            return False
        try:
            settings = self.hook.settings
        except ConnectionConfigError:
            return False
        with Downloads(settings, "", max_bytes=FILE_MAX_BYTES, concurrency=1, log=self.log) as downloads:
            return downloads.all_gone(generation)

    def _s3_client(self) -> S3Client:
        from airflow_provider_getimg.s3.connection import s3_client, s3_hook

        return s3_client(s3_hook(self.aws_conn_id, connections=1))
