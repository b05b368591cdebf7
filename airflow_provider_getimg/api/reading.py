# SPDX-License-Identifier: Apache-2.0
"""Turn the body of a successful response into a typed one, or into an error that quotes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from airflow_provider_getimg.api import lenient_json, responses
from airflow_provider_getimg.api.faults import first_error

if TYPE_CHECKING:
    import httpx

    from airflow_provider_getimg.api.errors import GetimgError
    from airflow_provider_getimg.api.types import _ApiObject

    ApiObjectT = TypeVar("ApiObjectT", bound=_ApiObject)


@dataclass(frozen=True)
class Reader:
    """
    Reads responses from one server.

    :param base_url: The server's base URL, for messages.
    :param redact: Removes secrets from quoted text.
    """

    base_url: str
    redact: responses.Redact

    def read(
        self, kind: type[ApiObjectT], response: httpx.Response, content: bytes, unreadable: type[GetimgError]
    ) -> ApiObjectT:
        """
        Return the typed response.

        :raises GetimgError: The response can't be read; raised as ``unreadable``.
        """
        received = self._json(response, content, unreadable)
        try:
            return kind.from_json(received)
        except ValueError as error:
            raise self._unreadable(unreadable, response, content, _why(error)) from None

    def read_list(
        self, kind: type[ApiObjectT], response: httpx.Response, content: bytes, unreadable: type[GetimgError]
    ) -> list[ApiObjectT]:
        """
        Return a list of typed responses.

        :raises GetimgError: It is not a list, or an entry can't be read; raised as ``unreadable``.
        """
        received = self._json(response, content, unreadable)
        if not isinstance(received, list):
            raise self._unreadable(unreadable, response, content, "it is not a list.")
        try:
            return [kind.from_json(entry) for entry in received]
        except ValueError as error:
            raise self._unreadable(unreadable, response, content, _why(error)) from None

    def _json(self, response: httpx.Response, content: bytes, unreadable: type[GetimgError]) -> Any:
        try:
            return lenient_json.loads(content)
        except ValueError:
            raise self._unreadable(unreadable, response, content, "it is not JSON.") from None

    def _unreadable(
        self, unreadable: type[GetimgError], response: httpx.Response, content: bytes, why: str
    ) -> GetimgError:
        error = unreadable(
            f"{self.base_url} returned {response.status_code} with an unreadable body: "
            f"{responses.one_line(why, 500, self.redact)} It says: {responses.excerpt(content, self.redact)}.",
            status=response.status_code,
        )
        error.received = content.decode("utf-8", errors="replace")
        return error


def _why(error: ValueError) -> str:
    return first_error(error) if isinstance(error, ValidationError) else str(error)
