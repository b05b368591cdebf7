# SPDX-License-Identifier: Apache-2.0
"""Tell Airflow and OpenLineage which objects a transfer wrote. Never where from: that URL is a secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import Asset, AssetAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_getimg.transfers.copier import Saved


_PLAIN_IN_A_PATH = "/!$&'()*+,;=:@-._~"


def emit_asset_events(context: Context, outlets: Iterable[Any], saved: Sequence[Saved]) -> None:
    """
    Put the saved objects into the events of the task's outlets.

    An ``AssetAlias`` gets an event for each object, under the asset ``s3://bucket/key``. An ``Asset`` gets its one
    event of this task, with the objects under ``files``.
    """
    for outlet in outlets:
        if isinstance(outlet, AssetAlias):
            for file in saved:
                # Airflow would cut a key at "#", and some databases take ASCII alone.
                uri = f"s3://{file.copy.bucket}/{quote(file.copy.key, safe=_PLAIN_IN_A_PATH)}"
                asset = Asset(name=uri, uri=uri)
                context["outlet_events"][outlet].add(asset, extra=_extra(file))
        elif isinstance(outlet, Asset):
            context["outlet_events"][outlet].extra = {
                "files": [{"uri": file.copy.uri, **_extra(file)} for file in saved]
            }


def _extra(file: Saved) -> dict[str, Any]:
    return {
        "generation_id": file.copy.generation_id,
        "index": file.copy.index,
        "model": file.copy.model,
        "cost_usd": file.copy.cost,
        "bytes": file.size,
        "sha256": file.sha256,
        "mime_type": file.copy.media.mime_type,
    }


def collect_hook_lineage(hook: S3Hook, saved: Sequence[Saved]) -> None:
    """Add the saved objects to what Airflow's hook lineage collector knows of this task."""
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    collector = get_hook_lineage_collector()  # type: ignore[no-untyped-call]
    for file in saved:
        collector.add_output_asset(
            context=hook, scheme="s3", asset_kwargs={"bucket": file.copy.bucket, "key": file.copy.key}
        )


def openlineage_outputs(saved: Sequence[Saved]) -> OperatorLineage[Any, Any]:
    """Return the saved objects as OpenLineage datasets."""
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    return OperatorLineage(
        outputs=[Dataset(namespace=f"s3://{file.copy.bucket}", name=file.copy.key) for file in saved]
    )
