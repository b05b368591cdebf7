# SPDX-License-Identifier: Apache-2.0
"""Bearer token authentication."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from airflow_provider_getimg.simulator.errors import ApiError

if TYPE_CHECKING:
    from fastapi import Request

DEFAULT_API_KEY = "sk_simulator"


def check_key(request: Request, api_key: str) -> None:
    """Refuse a request without the workspace's key."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), api_key.encode()):
        raise ApiError(401)
