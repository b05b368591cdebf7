# SPDX-License-Identifier: Apache-2.0
"""
What tasks record in XCom besides what they return, so that lists of images and costs can find them.

Imported while DAGs are parsed: it imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.hooks.masking import without_queries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.types import Logger

#: The XCom key for how many images a task saved, an integer above 0.
IMAGES = "getimg_images"
#: The XCom key for what a task was billed: ``{"cost": 0.04, "images": 1, "models": {"seedream-5-lite": 0.04}}``, in USD.
COST = "getimg_cost"

#: What is recorded of a request, beside its labels. References are not: they may be large, and signed.
REQUEST_FIELDS = ("model", "prompt", "aspect_ratio", "resolution", "output_format", "duration", "sound")


_TYPES = {"duration": int, "sound": bool}


def request_record(fields: Mapping[str, Any], labels: Mapping[str, str | int | float]) -> dict[str, Any]:
    """
    Return what is recorded of a request: its plain fields and its labels, with the query strings of URLs cut off.

    :param fields: Its fields; others than those recorded are left out, as are None and what is not a text, number or flag.
    """
    record: dict[str, Any] = {
        name: fields[name] for name in REQUEST_FIELDS if isinstance(fields.get(name), _TYPES.get(name, str))
    }
    if labels:
        record["labels"] = dict(labels)
    redacted: dict[str, Any] = without_queries(record)
    return redacted


def push_record(context: Context, key: str, value: object, log: Logger) -> None:
    """Push a record. It is no reason to fail a task that was paid for: where it can't be pushed, the log warns."""
    try:
        context["ti"].xcom_push(key=key, value=value)
    except Exception as error:
        log.warning("The XCom %r could not be pushed: %s.", key, type(error).__name__)
