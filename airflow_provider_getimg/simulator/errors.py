# SPDX-License-Identifier: Apache-2.0
"""The API's error bodies: one table for both refusals and injected faults."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

# status -> (code, message). 400, 401, 402, 422 and 429 are documented; the other codes are guesses.
STATUSES: dict[int, tuple[str, str]] = {
    400: ("invalid_parameter", "The request is invalid."),
    401: ("invalid_api_key", "Missing or invalid API key."),
    402: ("quota_exceeded", "The balance is too low for this request."),
    403: ("forbidden", "The request is not allowed."),
    404: ("not_found", "The resource was not found."),
    405: ("method_not_allowed", "The method is not allowed here."),
    408: ("request_timeout", "The request took too long."),
    409: ("conflict", "The request conflicts with another one."),
    410: ("gone", "The resource is gone."),
    413: ("request_too_large", "The request is too large."),
    415: ("unsupported_media_type", "The media type is not supported."),
    422: ("content_policy_violation", "The request was refused by the content policy."),
    429: ("rate_limit", "Too many requests."),
    500: ("internal_error", "The server had an error while processing the request."),
    502: ("bad_gateway", "The server got no valid response from an upstream server."),
    503: ("service_unavailable", "The service is temporarily unavailable."),
    504: ("gateway_timeout", "The server got no response from an upstream server in time."),
}

# A 402 or 429 may contain only a message and a code, so here they do: clients must cope with that.
BARE_STATUSES = frozenset({402, 429})
MAX_MESSAGE = 500


class ApiError(Exception):
    """A request that the API refuses, with its response.

    :param status: The HTTP status.
    :param message: The message for the caller; by default that of the status.
    :param code: The machine-readable code; by default that of the status.
    :param param: The parameter at fault, e.g. ``images[0].url``.
    :param headers: Headers of the response besides its type and length.
    """

    def __init__(
        self,
        status: int,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.body = error_body(status, message, code=code, param=param)
        self.headers = dict(headers or {})
        super().__init__(self.body["error"]["message"])


def missing(param: str) -> ApiError:
    """Refuse a request that lacks a required parameter."""
    return ApiError(400, f"Missing required parameter: '{param}'.", code="parameter_missing", param=param)


def invalid(param: str | None, message: str) -> ApiError:
    """Refuse a parameter's value."""
    return ApiError(400, message, param=param)


def must_be(name: str, *errors: ErrorDetails) -> str:
    """Return pydantic's errors for one value, one for each type that it may have, as one sentence."""
    rules = [error["msg"].removeprefix("Input should be ").partition(", unable")[0] for error in errors]
    return f"{name} must be {' or '.join(rules)}, got {errors[0]['input']!r}"


def error_body(
    status: int, message: str | None = None, *, code: str | None = None, param: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return the JSON body that the API sends with this status."""
    known_code, known_message = STATUSES.get(status, ("error", f"The request failed with status {status}."))
    # Quoted input may be as long as the request.
    code, message = code or known_code, (message or known_message)[:MAX_MESSAGE]
    param = param and param[:MAX_MESSAGE]
    if status in BARE_STATUSES:
        return {"error": {"message": message, "code": code}}
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return {"error": {**error, "doc_url": f"https://docs.getimg.ai/guides/errors#{code}"}}


def as_json(value: object) -> bytes:
    """Encode a body as ASCII: a request may contain lone surrogates, and its refusal may quote them."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")
