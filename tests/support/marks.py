# SPDX-License-Identifier: Apache-2.0
"""Marks for tests of features that some versions of Airflow lack."""

from __future__ import annotations

import pytest

from airflow_provider_getimg.version_compat import SORTS_XCOMS

LISTS = pytest.mark.skipif(not SORTS_XCOMS, reason="the gallery's lists need Airflow 3.2")
