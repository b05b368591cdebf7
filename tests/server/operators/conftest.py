# SPDX-License-Identifier: Apache-2.0
"""Fixtures that the operators' tests share."""

from __future__ import annotations

import pytest

from tests.server.operators.batch_bench import Bench


@pytest.fixture
def bench(monkeypatch, getimg_default, simulator, seaweedfs, bucket, context) -> Bench:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())
    return Bench(simulator, seaweedfs, bucket, context)
