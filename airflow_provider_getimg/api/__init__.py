# SPDX-License-Identifier: Apache-2.0
"""
The getimg.ai API for Python, without Airflow.

.. code-block:: python

    from airflow_provider_getimg.api import GetimgClient, ImageRequest

    with GetimgClient("sk_...") as client:
        response = client.generate_image(ImageRequest(model="seedream-5-lite", prompt="A red fox"))
        print(response.id, response.data[0].url)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_getimg.api.client import GetimgClient
    from airflow_provider_getimg.api.errors import GetimgError
    from airflow_provider_getimg.api.requests import ImageRequest, VideoRequest
    from airflow_provider_getimg.api.types import Balance, Costs, Generation, Model, Video

_HOMES = {
    "Balance": "types",
    "Costs": "types",
    "Generation": "types",
    "GetimgClient": "client",
    "GetimgError": "errors",
    "ImageRequest": "requests",
    "Model": "types",
    "Video": "types",
    "VideoRequest": "requests",
}

__all__ = [
    "Balance",
    "Costs",
    "Generation",
    "GetimgClient",
    "GetimgError",
    "ImageRequest",
    "Model",
    "Video",
    "VideoRequest",
]


def __getattr__(name: str) -> Any:
    # Import on demand: parsing a DAG file needs neither httpx nor pydantic.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
