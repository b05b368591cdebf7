# SPDX-License-Identifier: Apache-2.0
"""Report to Airflow and OpenLineage the objects that a transfer wrote, but not their source: its URL is secret."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import conf
from airflow.sdk import Asset, AssetAlias
from airflow.sdk.definitions import asset as definitions
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk.types import Logger

    from airflow_provider_getimg.s3.copier import SavedFile

#: How many events of a task Airflow registers per second on SQLite, with a safety margin.
EVENTS_PER_SECOND = 50
#: How many objects of a task to look up among Airflow's assets, at about 10 ms each.
LOOKUPS = 100
#: The longest URI that is also its asset's name: a PostgreSQL index holds both in 2,704 bytes. Airflow accepts 1,500.
LONGEST_NAME = 1300

_PLAIN_IN_A_PATH = "/!$&'()*+,;=:@-._~"
_LOG = logging.getLogger(__name__)


def emit_asset_events(
    context: Context, outlets: Iterable[Any], saved: Sequence[SavedFile], log: Logger | logging.Logger = _LOG
) -> None:
    """
    Add the saved objects to the events of the task's outlets. What Airflow rejects is logged as a warning, never a failure.

    An ``AssetAlias`` gets an event for each object, on the asset that has the object's URI, or else on a new one named after
    the URI. An ``Asset`` gets this task's one event, with the objects under ``files``.
    """
    for outlet in outlets:
        try:
            if isinstance(outlet, AssetAlias):
                _emit_each(context["outlet_events"][outlet], saved, log)
            elif isinstance(outlet, Asset | definitions.AssetRef):
                event: Any = context["outlet_events"][outlet]
                event.extra = {
                    "files": [
                        {"uri": file.item.uri, **extra} for file in saved if (extra := _extra(file, log))
                    ]
                }
        except Exception as error:
            log.warning("The files are saved, but are in no asset event of %s: %s", _label(outlet), error)


def _emit_each(events: Any, saved: Sequence[SavedFile], log: Logger | logging.Logger) -> None:
    most = _most_events()
    if most is not None and len(saved) > most:
        log.warning(
            "All files are saved, but only the first %d of %d get an asset event: with more, Airflow on SQLite could fail the "
            "task. List an Asset in outlets, which gets one event that lists all files, or raise [workers] execution_api_timeout.",
            most,
            len(saved),
        )
    lookups = LOOKUPS
    for file in saved[:most]:
        # Airflow would cut a key at "#", and its database accepts only ASCII.
        uri = f"s3://{file.item.bucket}/{quote(file.item.key or '', safe=_PLAIN_IN_A_PATH)}"
        if not (extra := _extra(file, log)):
            continue
        if lookups and not _is_new(file):
            lookups -= 1
            try:
                if _add_to_existing(events, uri, extra):
                    continue
            except ImportError:
                # Outside a running task, assets can't be looked up.
                lookups = 0
            except Exception as error:
                lookups = 0
                log.warning(
                    "Assets are named by their URIs, as Airflow can't list the names that DAGs gave them: %s",
                    error,
                )
        try:
            events.add(Asset(name=_name(uri), uri=uri), extra=extra)
        except Exception as error:
            log.warning("%s is saved, but has no asset event: %s", file.item.uri, error)


def _add_to_existing(events: Any, uri: str, extra: dict[str, Any]) -> bool:
    """Add an event to the asset with this URI, whatever its name, and return whether there is such an asset."""
    try:
        events.add(Asset.ref(uri=uri), extra=extra)
    except AirflowRuntimeError as error:
        if error.error.error == ErrorType.ASSET_NOT_FOUND:
            return False
        raise
    return True


def _most_events() -> int | None:
    """
    Return how many events of a task Airflow is sure to accept; None for any number.

    If a worker's request to register the events times out, the worker retries it. Other databases lock the task meanwhile;
    on SQLite the two requests collide, and the task fails.
    """
    kind, _, path = getattr(definitions, "SQL_ALCHEMY_CONN", "").partition(":///")
    # A worker without database settings defaults to SQLite, but has no such file.
    if not kind.startswith("sqlite") or not Path(path).exists():
        return None
    return int(EVENTS_PER_SECOND * conf.getfloat("workers", "execution_api_timeout", fallback=5.0))


def _is_new(file: SavedFile) -> bool:
    """Return whether no DAG can have named the object before it was written."""
    return file.item.generation_id in file.item.uri or file.sha256 in file.item.uri


def _name(uri: str) -> str:
    if len(uri) <= LONGEST_NAME:
        return uri
    return f"{uri[:1000]}-{hashlib.sha256(uri.encode()).hexdigest()}"


def _label(outlet: Asset | AssetAlias | definitions.AssetRef) -> str:
    return str(getattr(outlet, "name", None) or getattr(outlet, "uri", ""))


def _extra(file: SavedFile, log: Logger | logging.Logger) -> dict[str, Any] | None:
    """Return the extra of an object's event; log a warning and return None if it can't be sent to Airflow."""
    extra = {
        "generation_id": file.item.generation_id,
        "index": file.item.index,
        "model": file.item.model,
        "cost_usd": None if file.item.cost is None else str(file.item.cost),
        "bytes": file.size,
        "sha256": file.sha256,
        "mime_type": file.mime_type,
    }
    try:
        json.dumps([file.item.uri, extra], ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        log.warning("%r is saved, but has no asset event: %s", file.item.uri, error)
        return None
    return extra


def collect_hook_lineage(
    hook: S3Hook, saved: Sequence[SavedFile], log: Logger | logging.Logger = _LOG
) -> None:
    """Add the saved objects to Airflow's hook lineage collector for this task, if it accepts them."""
    try:
        from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

        collector = get_hook_lineage_collector()  # type: ignore[no-untyped-call]
        for file in saved:
            collector.add_output_asset(
                context=hook, scheme="s3", asset_kwargs={"bucket": file.item.bucket, "key": file.item.key}
            )
    except Exception as error:
        log.warning("The files are saved, but not all of them are in Airflow's hook lineage: %s", error)


def openlineage_outputs(saved: Sequence[SavedFile]) -> OperatorLineage[Any, Any]:
    """Return the saved objects as OpenLineage datasets."""
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    return OperatorLineage(
        outputs=[Dataset(namespace=f"s3://{file.item.bucket}", name=file.item.key or "") for file in saved]
    )
