# SPDX-License-Identifier: Apache-2.0
"""The S3 client for an AWS connection."""

from __future__ import annotations

import inspect

import pytest

from airflow_provider_getimg.s3.connection import s3_client, s3_hook


@pytest.mark.parametrize("connections", [1, 32], ids=["as it is", "with room for more"])
def test_s3_client_names_its_caller_without_a_stack_search_and_sizes_its_pool(monkeypatch, connections):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://key:secret@/?region_name=us-east-1")
    monkeypatch.setattr(inspect, "stack", lambda *_: pytest.fail("the stack was searched"))
    config = s3_client(s3_hook("aws_default", connections)).meta.config
    assert "Caller/GetimgS3 " in config.user_agent_extra
    assert config.max_pool_connections == max(10, connections)
