# SPDX-License-Identifier: Apache-2.0
"""Airflow internals that the tests use, from wherever a version has them."""

from __future__ import annotations

try:
    from airflow.sdk.serde import deserialize, serialize
except ImportError:  # before 3.2
    from airflow.serialization.serde import deserialize, serialize
try:
    from airflow.sdk.execution_time.task_runner import _serialize_template_field as serialize_template_field
except ImportError:  # before 3.1.8
    from airflow.serialization.helpers import serialize_template_field

__all__ = ["deserialize", "serialize", "serialize_template_field"]
