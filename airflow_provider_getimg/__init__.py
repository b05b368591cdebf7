# SPDX-License-Identifier: Apache-2.0
"""Schedule image generation with getimg.ai in Apache Airflow, and keep the images in S3."""

__version__ = "0.1.0"
