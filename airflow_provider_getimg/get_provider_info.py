# SPDX-License-Identifier: Apache-2.0
"""The provider metadata that Airflow reads at startup. Imports nothing from Airflow, httpx or this package."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata: its connection form, operators, sensors, decorators and links."""
    return {
        "package-name": "airflow-provider-getimg",
        "name": "getimg.ai",
        "description": "Generate images and videos with `getimg.ai <https://getimg.ai/>`__ and keep them in Amazon S3.",
        "integrations": [
            {
                "integration-name": "getimg.ai",
                "external-doc-url": "https://docs.getimg.ai/",
                "tags": ["ai"],
            }
        ],
        "hooks": [
            {
                "integration-name": "getimg.ai",
                "python-modules": ["airflow_provider_getimg.hooks.getimg"],
            }
        ],
        "operators": [
            {
                "integration-name": "getimg.ai",
                "python-modules": [
                    "airflow_provider_getimg.operators.image",
                    "airflow_provider_getimg.operators.image_batch",
                    "airflow_provider_getimg.operators.video",
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": "getimg.ai",
                "python-modules": ["airflow_provider_getimg.sensors.balance"],
            }
        ],
        "triggers": [
            {
                "integration-name": "getimg.ai",
                "python-modules": [
                    "airflow_provider_getimg.triggers.balance",
                    "airflow_provider_getimg.triggers.video",
                ],
            }
        ],
        "transfers": [
            {
                "source-integration-name": "getimg.ai",
                "target-integration-name": "Amazon Simple Storage Service (S3)",
                "python-module": "airflow_provider_getimg.transfers.getimg_to_s3",
            }
        ],
        "task-decorators": [
            {
                "class-name": "airflow_provider_getimg.decorators.image.getimg_image_task",
                "name": "getimg_image",
            },
            {
                "class-name": "airflow_provider_getimg.decorators.image_batch.getimg_images_to_s3_task",
                "name": "getimg_images_to_s3",
            },
        ],
        "extra-links": [
            "airflow_provider_getimg.links.ImagesLink",
            "airflow_provider_getimg.links.OpenInS3Link",
        ],
        "connection-types": [
            {
                "connection-type": "getimg",
                "hook-class-name": "airflow_provider_getimg.hooks.getimg.GetimgHook",
                "hook-name": "getimg.ai",
                "conn-fields": {
                    "timeout": {
                        "label": "Timeout (seconds)",
                        # The form supports only `minimum`.
                        "schema": {"type": ["number", "null"], "minimum": 1},
                        "description": "How long a generation, or the download of a file, may take. Empty means 300.",
                    },
                    "proxy": {
                        "label": "Proxy",
                        "schema": {"type": ["string", "null"]},
                        "description": "URL of an HTTP(S) or SOCKS proxy. Empty means the worker's environment.",
                    },
                    "allowed_networks": {
                        "label": "Allowed networks",
                        "schema": {"type": ["string", "null"]},
                        "description": "Private networks that downloads may reach, such as 10.0.0.0/8, 100.64.0.0/10. "
                        "Empty means only the public internet.",
                    },
                    "state_folder": {
                        "label": "State folder",
                        "schema": {"type": ["string", "null"]},
                        "description": "s3://bucket/prefix where tasks record what they have paid for. Empty means Airflow's "
                        "task state store; Airflow 3.1 and 3.2 have none.",
                    },
                },
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema", "port", "extra"],
                    "relabeling": {"password": "API key", "host": "Base URL"},
                    "placeholders": {"password": "sk_...", "host": "https://api.getimg.ai"},
                },
            }
        ],
    }
