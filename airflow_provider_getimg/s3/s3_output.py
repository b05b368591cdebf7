# SPDX-License-Identifier: Apache-2.0
"""The common parts of operators that save files to S3: hooks, lineage, and the link to the console."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.api.signals import call_from_handler
from airflow_provider_getimg.hooks.hook_mixin import HookMixin
from airflow_provider_getimg.links import ImagesLink, OpenInS3Link, console_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.providers.common.compat.sdk import BaseOperator, Context
    from airflow.providers.openlineage.extractors import OperatorLineage
    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.s3.copier import Copier, SavedFile
    from airflow_provider_getimg.s3.download import Downloads
    from airflow_provider_getimg.s3.store import S3Store
else:
    BaseOperator = object


class S3OutputMixin(HookMixin, BaseOperator):
    """Mixin for operators with ``getimg_conn_id`` and ``aws_conn_id``."""

    operator_extra_links = (ImagesLink(), OpenInS3Link())

    aws_conn_id: str | None
    #: The target of the "Open in S3" link, once something is saved.
    s3_console_url = ""

    @cached_property
    def s3_hook(self) -> S3Hook:
        """The hook for ``aws_conn_id``, with a connection for each concurrent request."""
        from airflow_provider_getimg.s3.connection import s3_hook

        return s3_hook(self.aws_conn_id, self._s3_connections())

    @abstractmethod
    def _s3_connections(self) -> int:
        """Return how many requests to S3 run at once."""

    @contextmanager
    def _copier(
        self, store: S3Store, *, if_exists: str, max_bytes: int, concurrency: int
    ) -> Iterator[Copier]:
        """Open a copier that saves files to a store, until :meth:`_abort_copies`."""
        from airflow_provider_getimg.s3.copier import Copier
        from airflow_provider_getimg.s3.download import Downloads

        with Downloads(
            self.hook.settings, self._remedy(), max_bytes=max_bytes, concurrency=concurrency, log=self.log
        ) as downloads:
            self._downloads: Downloads = downloads
            yield Copier(store, downloads, if_exists=if_exists, killed=self._killed, log=self.log)

    @abstractmethod
    def _remedy(self) -> str:
        """Return, as a sentence, how a user gets a new image for a file that is gone."""

    def _abort_copies(self) -> None:
        """Abort the copies in flight. Safe to call at any time, even from a signal handler."""
        call_from_handler(self._killed.set)
        downloads: Downloads | None = getattr(self, "_downloads", None)
        if downloads is not None:
            downloads.abort()

    def _remember(self, context: Context, saved: Sequence[SavedFile]) -> None:
        """Report the saved files to Airflow: assets, lineage, and the link."""
        from airflow_provider_getimg.s3.lineage import collect_hook_lineage, emit_asset_events

        self._saved = saved
        emit_asset_events(context, self.outlets, saved, self.log)
        collect_hook_lineage(self.s3_hook, saved, self.log)
        if not saved:
            return
        client: S3Client = self.s3_hook.get_conn()
        # Other S3-compatible stores have no page in the AWS console.
        if "amazonaws.com" in client.meta.endpoint_url:
            self.s3_console_url = console_url(
                saved[0].item.bucket, [file.item.key for file in saved], client.meta.region_name or ""
            )

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Report the saved objects as outputs, but not the source, which is a signed URL."""
        from airflow_provider_getimg.s3.lineage import openlineage_outputs

        return openlineage_outputs(getattr(self, "_saved", []))
