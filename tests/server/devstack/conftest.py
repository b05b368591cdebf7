# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from devstack.cluster.compose import REPOSITORY, Service, read_services

AIRFLOW_PORT = 11003


@pytest.fixture(scope="session")
def example_variables() -> dict[str, str]:
    """Return the variables of ``.env.example``, with a value for each secret and a port for Airflow."""
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    secrets = {name: "change-me" for name, value in variables.items() if not value}
    return variables | secrets | {"AIRFLOW_PORT": str(AIRFLOW_PORT)}


@pytest.fixture(scope="session")
def services(example_variables: dict[str, str]) -> dict[str, Service]:
    """Return the compose file's services with these variables."""
    return read_services(example_variables)
