# SPDX-License-Identifier: Apache-2.0
"""``s3://`` URIs."""

from __future__ import annotations


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Split ``s3://bucket/key``; what is missing is empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
