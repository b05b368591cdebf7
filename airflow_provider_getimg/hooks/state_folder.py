# SPDX-License-Identifier: Apache-2.0
"""The connection's ``state_folder``: where tasks record what they have paid for, if not in Airflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from airflow_provider_getimg.api.errors import ConnectionConfigError
from airflow_provider_getimg.api.quote import quote


@dataclass(frozen=True)
class StateFolder:
    """
    A folder in S3.

    :param bucket: The bucket.
    :param prefix: The prefix of all keys, without slashes at its ends; empty for the whole bucket.
    :param aws_conn_id: The AWS connection that reads and writes it; None for the task's own.
    """

    bucket: str
    prefix: str
    aws_conn_id: str | None = None

    @classmethod
    def checked(cls, text: object) -> Self | None:
        """
        Parse ``s3://bucket/prefix`` or ``s3://aws_conn_id@bucket/prefix``; return None if there is none.

        :raises ConnectionConfigError: It is neither.
        """
        if text is None or text == "":
            return None
        try:
            parts = urlsplit(text.strip() if isinstance(text, str) else "")
            is_valid = parts.scheme == "s3" and parts.hostname and parts.port is None
        except ValueError:
            is_valid = False
        if not is_valid or parts.password is not None or parts.query or parts.fragment:
            # Don't quote what may be a password.
            got = f", got {quote(text)}" if "@" not in str(text) and "?" not in str(text) else ""
            raise ConnectionConfigError(
                f"state_folder must be s3://bucket/prefix, or s3://aws_conn_id@bucket/prefix{got}."
            )
        bucket = parts.netloc.rpartition("@")[2]
        return cls(bucket, parts.path.strip("/"), parts.username or None)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")
