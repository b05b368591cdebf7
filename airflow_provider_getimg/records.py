# SPDX-License-Identifier: Apache-2.0
"""
XComs that tasks push besides their return value, so that lists of images and costs can find them.

Imported while DAGs are parsed, so it imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.hooks.masking import without_queries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.types import Logger

#: The XCom key for the number of images that a task saved, an integer above 0.
IMAGES = "getimg_images"
#: The XCom key for what a task was billed: ``{"cost": 0.04, "images": 1, "models": {"seedream-5-lite": 0.04}}``, in USD.
COST = "getimg_cost"

#: The request fields that are recorded, besides the labels. References are not: they may be large, and signed.
REQUEST_FIELDS = ("model", "prompt", "aspect_ratio", "resolution", "output_format", "duration", "sound")


_TYPES = {"duration": int, "sound": bool}


def request_record(fields: Mapping[str, Any], labels: Mapping[str, str | int | float]) -> dict[str, Any]:
    """
    Return the record of a request: its plain fields and its labels, without the query strings of URLs.

    :param fields: Its fields; fields that are not recorded are left out, as are None and anything but strings, numbers and booleans.
    """
    record: dict[str, Any] = {
        name: fields[name] for name in REQUEST_FIELDS if isinstance(fields.get(name), _TYPES.get(name, str))
    }
    if labels:
        record["labels"] = dict(labels)
    redacted: dict[str, Any] = without_queries(record)
    return redacted


def push_record(context: Context, key: str, value: object, log: Logger) -> None:
    """Push a record. If that fails, only log a warning: it is no reason to fail a task that was paid for."""
    try:
        context["ti"].xcom_push(key=key, value=value)
    except Exception as error:
        log.warning("The XCom %r could not be pushed: %s.", key, type(error).__name__)
