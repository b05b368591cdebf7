# SPDX-License-Identifier: Apache-2.0
"""The links from a task to its images in the gallery and in the AWS console."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from airflow.providers.common.compat.sdk import TaskInstanceKey

from airflow_provider_getimg.links import ImagesLink, console_url
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


@pytest.mark.parametrize(
    ("keys", "region", "expected"),
    [
        (["a b/1.png"], "eu-west-1", "aws.amazon.com/s3/object/b?prefix=a%20b%2F1.png&region=eu-west-1"),
        (["1.png"], "", "aws.amazon.com/s3/object/b?prefix=1.png"),
        (["x/1/a.png", "x/2/a.png"], "", "aws.amazon.com/s3/buckets/b?prefix=x%2F"),
        (["a.png", "b.png"], "", "aws.amazon.com/s3/buckets/b?prefix="),
        (["1.png"], "cn-north-1", "amazonaws.cn/s3/object/b?prefix=1.png&region=cn-north-1"),
        (["1.png"], "us-gov-west-1", "amazonaws-us-gov.com/s3/object/b?prefix=1.png&region=us-gov-west-1"),
    ],
    ids=["one-object", "no-region", "shared-folder", "no-shared-folder", "China", "GovCloud"],
)
def test_console_link_leads_to_the_object_or_to_the_folder_of_several(keys, region, expected):
    assert console_url("b", keys, region) == f"https://console.{expected}"
