# SPDX-License-Identifier: Apache-2.0
"""S3's errors as sentences, and whether they are transient."""

from __future__ import annotations

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)

from airflow_provider_getimg.api.errors import (
    ConnectionConfigError,
    ConnectionUnavailableError,
    GetimgError,
    InvalidInputError,
    ObjectStoreError,
    StoreRefusedError,
    UnavailableError,
)

# Transient refusals (4xx): a clock, a token, throttling, a body corrupted in transit.
TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteBody",
        "OperationAborted",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "RequestTimeout",
        "SlowDown",
        "TemporaryRedirect",
        "TokenRefreshRequired",
        "TooManyRequests",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
_TRANSIENT_STATUSES = frozenset({408, 409, 412, 425, 429})


def store_error(
    aws_conn_id: str | None, action: str, bucket: str, uri: str, error: ClientError | BotoCoreError
) -> GetimgError:
    """Return S3's error as one sentence."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
        found = " ".join(str(error).split()).rstrip(".")
        # An instance's metadata service that is too busy to respond leaves a worker without credentials, too.
        is_missing = isinstance(error, NoCredentialsError)
        return (ConnectionUnavailableError if is_missing else ConnectionConfigError)(
            f"The AWS connection {aws_conn_id!r} has no credentials for S3, nor does the worker's environment: {found}."
        )
    if not isinstance(error, ClientError):
        # botocore itself rejects an invalid bucket name, and a retry would not help.
        kind = InvalidInputError if isinstance(error, ParamValidationError) else ObjectStoreError
        reason = " ".join(str(error).split()).rstrip(".")
        return kind(f"S3 could not {action} {uri}: {reason}.")
    said, status = error.response.get("Error", {}), status_of(error)
    code = said.get("Code") or "no code"
    if code == "NoSuchBucket" or (status == 404 and action == "store"):
        return StoreRefusedError(
            f"S3 could not {action} {uri}: there is no bucket {bucket!r}.", status=status, code=code
        )
    message = " ".join((said.get("Message") or "no reason given").split()).rstrip(".")
    where = f"({status})" if code == str(status) else f"({status} {code})"
    return (ObjectStoreError if is_transient(error) else StoreRefusedError)(
        f"S3 refused to {action} {uri} {where}: {message}.", status=status, code=code
    )


def status_of(error: ClientError) -> int:
    """Return the HTTP status of a refusal; 0 if it has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_transient(error: ClientError) -> bool:
    """Return whether another request may succeed."""
    status, code = status_of(error), error.response.get("Error", {}).get("Code") or ""
    if code in TRANSIENT_CODES or "throttl" in code.lower() or status in _TRANSIENT_STATUSES:
        return True
    return (status >= 500 and status != 501) or not status


def read_error(name: str, error: ClientError | BotoCoreError) -> InvalidInputError | UnavailableError:
    """Return why an object that a parameter names can't be read: as invalid input if a retry would not help."""
    reason = " ".join(str(error).split()).rstrip(".")
    final = isinstance(error, ParamValidationError) or (
        isinstance(error, ClientError) and not is_transient(error)
    )
    return (InvalidInputError if final else UnavailableError)(f"{name} can't be read from S3: {reason}.")
