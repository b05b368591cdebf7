# SPDX-License-Identifier: Apache-2.0
"""The link from a task to its images in the gallery."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from airflow.providers.common.compat.sdk import TaskInstanceKey

from airflow_provider_getimg.links import ImagesLink
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        (None, "/getimg/images/"),
        ("https://airflow.example/team/a", "https://airflow.example/team/a/getimg/images/"),
        ("https://airflow.example/team/a/", "https://airflow.example/team/a/getimg/images/"),
    ],
    ids=["no-base-url", "prefix", "prefix-with-slash"],
)
def test_images_link_filters_the_gallery_to_one_task_instance(monkeypatch, base_url, expected):
    if base_url:
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    key = TaskInstanceKey("a_dag", "group.a_task", "manual__2026-01-01T00:00:00+00:00", 1, 3)
    operator = TransferToS3Operator(task_id="a_task", generation=[], s3_key="s3://b/k")
    link = next(link for link in operator.operator_extra_links if isinstance(link, ImagesLink))
    url = urlsplit(link.get_link(operator, ti_key=key))
    assert url._replace(query="").geturl() == expected
    assert dict(parse_qsl(url.query)) == {
        "dag": "a_dag",
        "run": "manual__2026-01-01T00:00:00+00:00",
        "task": "group.a_task",
        "map_index": "3",
    }
