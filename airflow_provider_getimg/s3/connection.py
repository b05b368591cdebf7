# SPDX-License-Identifier: Apache-2.0
"""The AWS connection and its S3 client."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
)

from airflow_provider_getimg.api.errors import (
    ConnectionConfigError,
    ConnectionUnavailableError,
    GetimgError,
    ObjectStoreError,
)
from airflow_provider_getimg.api.signed_urls import reason
from airflow_provider_getimg.s3.store_errors import is_transient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from mypy_boto3_s3 import S3Client

# Prefixes of the response headers that are read.
_READ_HEADERS = ("content-", "etag", "x-amz-checksum-", "x-amz-meta-", "x-amz-request-id", "x-amz-id-2")


def s3_hook(aws_conn_id: str | None, connections: int, config: Config | None = None) -> S3Hook:
    """
    Return a hook whose client can send this many requests at once; boto3 keeps 10 connections by default.

    :param config: Extra settings, which override the connection's own.
    """
    hook = _hook_class()(aws_conn_id=aws_conn_id)
    with _translate_connection_errors(aws_conn_id):
        own = hook.conn_config.botocore_config
    if connections > (own or Config()).max_pool_connections:  # type: ignore[attr-defined]
        config = Config(max_pool_connections=connections).merge(config or Config())
    return hook if config is None else _reconfigured(hook, config)


@cache
def _hook_class() -> type[S3Hook]:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    class GetimgS3Hook(S3Hook):
        """Names its caller for the user agent; the base class would search all modules for it."""

        def _get_caller(self, *_: object) -> str:
            return "GetimgS3"

    return GetimgS3Hook


def s3_client(hook: S3Hook) -> S3Client:
    """
    Return the hook's client.

    :raises ConnectionConfigError: The connection can't be used.
    """
    with _translate_connection_errors(hook.aws_conn_id):
        client: S3Client = hook.get_conn()
    client.meta.events.register_first("before-sign.s3", _sign_checksum, unique_id="getimg-sign-checksum")
    _ignore_unused_headers(client)
    return client


def plain_client(hook: S3Hook, client: S3Client) -> S3Client:
    """Return a client that adds no checksums on its own: ``client`` itself, if it already adds none."""
    if getattr(client.meta.config, "request_checksum_calculation", None) == "when_required":
        return client
    plain: S3Client = _reconfigured(hook, Config(request_checksum_calculation="when_required")).get_conn()
    _ignore_unused_headers(plain)
    return plain


def _reconfigured(hook: S3Hook, config: Config) -> S3Hook:
    """Return a hook with ``config`` merged over the connection's own settings, such as the addressing style."""
    own = hook.conn_config.botocore_config
    return _hook_class()(
        aws_conn_id=hook.aws_conn_id, config=own.merge(config) if own is not None else config
    )


def _ignore_unused_headers(client: S3Client) -> None:
    """Hide headers that are not read here from botocore: an invalid date in one would fail the whole call."""
    for operation in ("PutObject", "HeadObject", "GetObject"):
        client.meta.events.register(
            f"before-parse.s3.{operation}", _drop_unused_headers, unique_id=f"getimg-headers-of-{operation}"
        )


def _drop_unused_headers(response_dict: dict[str, Any], **_: Any) -> None:
    headers = response_dict["headers"]
    for name in list(headers) if response_dict["status_code"] < 300 else ():
        if not name.lower().startswith(_READ_HEADERS):
            del headers[name]


@contextmanager
def _translate_connection_errors(aws_conn_id: str | None) -> Iterator[None]:
    """Report in one sentence what is wrong with an AWS connection, whichever library finds it."""
    try:
        yield
    except (
        BotoCoreError,
        ClientError,
        AirflowException,
        AttributeError,
        NotImplementedError,
        TypeError,
        ValueError,
    ) as error:
        # Assuming a role sends a request, which may fail only this time.
        is_passing = isinstance(error, ConnectionError | HTTPClientError) or (
            isinstance(error, ClientError) and is_transient(error)
        )
        kind: type[GetimgError] = ObjectStoreError if is_passing else ConnectionConfigError
        if isinstance(error, NoCredentialsError):
            # Those that assume the role: from a metadata service that may only be busy.
            kind = ConnectionUnavailableError
        raise kind(f"The AWS connection {aws_conn_id!r} can't be used: {reason(error)}.") from None


def _sign_checksum(request: Any, **_: Any) -> None:
    """
    Compute a body's SHA-256 only once.

    Over plain http, botocore computes it a second time to sign the body: a quarter of an upload's CPU time. The
    ``x-amz-checksum-sha256`` header is signed too, and S3 verifies the body against it. A connection that sets
    ``payload_signing_enabled`` keeps its setting.
    """
    config = request.context.get("client_config")
    options: Any = getattr(config, "s3", None) or {}
    if "x-amz-checksum-sha256" in request.headers and options.get("payload_signing_enabled") is None:
        unsigned = Config(s3=options | {"payload_signing_enabled": False})
        request.context["client_config"] = config.merge(unsigned) if config is not None else unsigned
