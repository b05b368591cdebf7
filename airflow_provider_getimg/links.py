# SPDX-License-Identifier: Apache-2.0
"""Links on a task instance's page in the Airflow UI."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from airflow.providers.common.compat.sdk import BaseOperatorLink, conf

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey

_CONSOLE_DOMAINS = {"cn-": "amazonaws.cn", "us-gov-": "amazonaws-us-gov.com"}


class OpenInS3Link(BaseOperatorLink):
    """Links to the object that a task saved, or the folder of its objects, in the AWS console."""

    name = "Open in S3"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """
        Return the console's URL; empty if nothing was saved or the store is not Amazon's.

        Called in the worker at the end of each try, with the operator that has just run.
        """
        return getattr(operator, "s3_console_url", "")


class ImagesLink(BaseOperatorLink):
    """Links to the images that a task saved, in the gallery inside Airflow."""

    name = "Images"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the gallery's URL, filtered to this task. Called in the worker at the end of each try."""
        base: str = conf.get("api", "base_url", fallback="") or ""
        which = {
            "dag": ti_key.dag_id,
            "run": ti_key.run_id,
            "task": ti_key.task_id,
            "map_index": ti_key.map_index,
        }
        return f"{base.rstrip('/')}/getimg/images/?{urlencode(which)}"


def console_url(bucket: str, keys: list[str], region: str = "") -> str:
    """Return the AWS console's URL for an object, or for the shared folder if there are several."""
    domain = next(
        (domain for start, domain in _CONSOLE_DOMAINS.items() if region.startswith(start)),
        "aws.amazon.com",
    )
    base = f"https://console.{domain}/s3"
    where = f"&region={quote(region)}" if region else ""
    if len(keys) == 1:
        return f"{base}/object/{quote(bucket)}?prefix={quote(keys[0], safe='')}{where}"
    folder = _shared_folder(keys)
    return f"{base}/buckets/{quote(bucket)}?prefix={quote(folder, safe='')}{where}"


def _shared_folder(keys: list[str]) -> str:
    folders = [key.split("/")[:-1] for key in keys]
    shared = []
    for level in zip(*folders, strict=False):
        if len(set(level)) != 1:
            break
        shared.append(level[0])
    return "".join(f"{name}/" for name in shared)
