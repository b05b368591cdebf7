# SPDX-License-Identifier: Apache-2.0
"""Records of tasks, which others may have edited since: invalid content raises no error."""

from __future__ import annotations

import json

import pytest

from airflow_provider_getimg.batch.requests_file import MAX_REQUESTS
from airflow_provider_getimg.plugin.airflow_api import Task
from airflow_provider_getimg.plugin.pictures import amount, lines_of, of_manifest, of_transfer

TASK = Task("dag", "run", "task", -1)
ROW = {"uri": "s3://b/k.png", "generation_id": "req-1", "index": 0, "aws_conn_id": None}


@pytest.mark.parametrize(
    "value", [10**400, -1, True, float("nan"), float("inf"), "0.04", None, [1]], ids=repr
)
def test_invalid_cost_is_none(value):
    assert amount(value) is None
    [picture] = of_transfer(TASK, [ROW | {"cost": value}])
    assert picture.cost is None


@pytest.mark.parametrize("value", [10**400, -1, True, 1.5, "7", None], ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("name", ["bytes", "width", "height"])
def test_invalid_size_or_dimension_is_none(name, value):
    [picture] = of_transfer(TASK, [ROW | {name: value}])
    assert (picture.size, picture.width, picture.height) == (None, None, None)


def test_unreadable_manifest_lines_are_skipped():
    lines = [b"[" * 200_000, b"{", json.dumps(ROW).encode(), b"7"]
    assert lines_of(b"\n".join(lines)) == [ROW]


def test_manifest_is_read_up_to_the_maximum_length_of_a_batch():
    assert len(lines_of(b'{"uri": ""}\n' * (MAX_REQUESTS + 10))) == MAX_REQUESTS


def test_each_valid_file_of_a_row_is_an_image_and_the_first_has_the_cost():
    line = {
        **ROW,
        "files": [{"uri": "s3://b/0.png"}, {"uri": 7}, None, {"uri": "s3://b/3.png"}],
        "cost": 0.04,
    }
    found = of_manifest(TASK, [line], "aws")
    assert [(one.uri, one.file_index, one.cost) for one in found] == [
        ("s3://b/0.png", 0, 0.04),
        ("s3://b/3.png", 3, None),
    ]
