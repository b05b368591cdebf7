# SPDX-License-Identifier: Apache-2.0
"""The getimg.ai v2 API over httpx: requests out, typed responses back."""

from __future__ import annotations

import contextlib
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx

from airflow_provider_getimg.api import lenient_json, response_body, responses, settings
from airflow_provider_getimg.api.connection_watch import ConnectionWatch
from airflow_provider_getimg.api.errors import (
    GetimgError,
    InvalidInputError,
    NoConnectionError,
    OutcomeUnknownError,
    UnavailableError,
)
from airflow_provider_getimg.api.reading import Reader
from airflow_provider_getimg.api.requests import REQUEST_MAX_BYTES, ImageRequest, VideoRequest, video_path
from airflow_provider_getimg.api.types import Balance, Costs, Generation, Model, Video

if TYPE_CHECKING:
    PaidT = TypeVar("PaidT", Generation, Video)

CONNECT_TIMEOUT = 10.0
FREE_CALL_TIMEOUT = 30.0
COSTS_MAX_DAYS = 180

# A response is a few KB of URLs and numbers. Anything larger is not one, and must not fill the memory.
_RESPONSE_MAX_BYTES = 16 * 1024 * 1024
# A shorter key is no secret, and may be an ordinary word.
_SECRET_CHARACTERS = 16
# Response extension: the JSON is complete although the body broke off.
_CUT_OFF = "getimg_cut_off"


class GetimgClient:
    """
    A client for the getimg.ai API. Use it as a context manager, or call :meth:`close`.

    Generations are billed, and the API has no idempotency key: :meth:`generate_image` and :meth:`create_video`
    send their POST once, and never follow redirects or retry. Thread-safe.

    :param api_key: The account's API key (``sk_...``).
    :param base_url: The API's base URL, with scheme. Default ``https://api.getimg.ai``.
    :param timeout: Total time limit for a generation, in seconds. Default 300. The limit for free calls is
        30 seconds, or this if it is shorter.
    :param proxy: URL of an HTTP(S) or SOCKS proxy. Default: the environment's proxy settings.
    :raises ConnectionConfigError: One of these is invalid.
    """

    def __init__(
        self,
        api_key: str | None,
        *,
        base_url: str = settings.DEFAULT_BASE_URL,
        timeout: float = settings.DEFAULT_TIMEOUT,
        proxy: str | None = None,
    ) -> None:
        self._api_key = settings.checked_api_key(api_key)
        checked = settings.ClientSettings.checked(base_url, timeout, proxy)
        self.base_url = checked.base_url
        self.timeout = checked.timeout
        self._watches: set[ConnectionWatch] = set()
        self._aborted = False
        # Each request opens its own connection: the server may close a kept-alive one just as the next
        # POST goes out, and it would be unknown whether the POST arrived.
        self._http = settings.http_client(
            base_url=self.base_url,
            headers={
                "Authorization": f"Bearer {self._api_key}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            },
            proxy=checked.proxy,
            follow_redirects=False,
        )

        self._reader = Reader(self.base_url, self._redact)

    def __repr__(self) -> str:
        # Must also work if __init__ raised: stack traces with locals show the client.
        return f"<GetimgClient {self.__dict__.get('base_url', '(not set up)')}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Abort requests in flight and close the client. Idempotent."""
        self.abort()
        self._http.close()

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""
        return len(self._watches)

    def abort(self) -> int:
        """
        Abort all requests in flight immediately, and send no more. Safe to call from any thread or signal handler.

        :return: The number of requests aborted. A generation among them may still be made and billed.
        """
        self._aborted = True
        watches = list(self._watches)
        for watch in watches:
            watch.abort()
        return len(watches)

    def generate_image(self, request: ImageRequest) -> Generation:
        """
        Generate an image. Billed; sent once.

        :raises InvalidInputError: The body exceeds the API's limit of 25 MiB. Nothing was sent.
        :raises NoConnectionError: No connection was made. Nothing was sent.
        :raises RequestRefusedError: The API refused the request. Nothing was billed.
        :raises RateLimitError: Too many requests. Nothing was billed.
        :raises OutcomeUnknownError: The request was sent, but no readable response came back.
        """
        generation, response = self._paid("/v2/images/generations", request, Generation)
        generation._rate_limit = responses.rate_limit(response)
        return generation

    def create_video(self, request: VideoRequest) -> Video:
        """
        Submit a video; poll it with :meth:`get_video`. Billed; sent once.

        :return: The video's id, and usually nothing else yet.
        :raises InvalidInputError: The body exceeds the API's limit of 25 MiB. Nothing was sent.
        :raises NoConnectionError: No connection was made. Nothing was sent.
        :raises RequestRefusedError: The API refused the request. Nothing was billed.
        :raises RateLimitError: Too many requests. Nothing was billed.
        :raises OutcomeUnknownError: The request was sent, but no readable response came back.
        """
        video, _ = self._paid("/v2/videos/generations", request, Video)
        return video

    def get_video(self, video_id: str) -> Video:
        """Return the state of a video. Free."""
        return self._reader.read(Video, *self._get(video_path(video_id)), UnavailableError)

    def _paid(
        self, path: str, request: ImageRequest | VideoRequest, kind: type[PaidT]
    ) -> tuple[PaidT, httpx.Response]:
        """Send a billed request once and parse the response as leniently as possible."""
        body = json.dumps(request.to_json()).encode()
        if len(body) > REQUEST_MAX_BYTES:
            raise InvalidInputError(
                f"The request with its reference images must have at most {REQUEST_MAX_BYTES} bytes (25 MiB), "
                f"got {len(body)}."
            )
        response, content = self._send("POST", path, self.timeout, content=body)
        if not response.is_success:
            return self._result_despite_status(response, content, kind), response
        made = self._reader.read(kind, response, content, OutcomeUnknownError)
        if response.extensions.get(_CUT_OFF):
            made._oddities += ("the connection broke before the end of the response body",)
        return made, response

    def _result_despite_status(self, response: httpx.Response, content: bytes, kind: type[PaidT]) -> PaidT:
        """Return the generation if the body shows that it was made despite the HTTP status; otherwise raise."""
        error = responses.generation_error(response, content, self._redact)
        if not isinstance(error, OutcomeUnknownError):
            raise error
        try:
            made = kind.from_json(lenient_json.loads(content))
        except ValueError:
            raise error from None
        if not made.is_made:
            error.received = content.decode(errors="replace")
            raise error
        made._oddities += (f"its HTTP status is {response.status_code}",)
        return made

    def list_models(self, type: Literal["image", "video"] | None = None) -> list[Model]:
        """
        List the models available to the key, with their prices. Free.

        :param type: ``image`` or ``video``; both by default.
        :raises GetimgError: As with every free call: refused, rate limited, no connection, unavailable.
        """
        response, content = self._get("/v2/models", {"type": type} if type else None)
        return self._reader.read_list(Model, response, content, UnavailableError)

    def get_model(self, model: str) -> Model:
        """Return one model from the catalogue, with its prices. Free."""
        return self._reader.read(Model, *self._get(f"/v2/models/{quote(model, safe='')}"), UnavailableError)

    def get_balance(self) -> Balance:
        """Return the account's balance. Free."""
        return self._reader.read(Balance, *self._get("/v2/billing/balance"), UnavailableError)

    def get_costs(self, start: datetime, end: datetime) -> Costs:
        """
        Return what the account spent from ``start`` to ``end``. Free.

        :param start: With a time zone.
        :param end: With a time zone, after ``start``, at most 180 days later.
        :raises InvalidInputError: One of these rules is broken.
        """
        for name, moment in (("start", start), ("end", end)):
            if moment.utcoffset() is None:
                raise InvalidInputError(f"{name} must have a time zone, got {moment.isoformat()}.")
        if not timedelta(0) < end - start <= timedelta(days=COSTS_MAX_DAYS):
            raise InvalidInputError(
                f"end ({end.isoformat()}) must be after start ({start.isoformat()}), by at most "
                f"{COSTS_MAX_DAYS} days."
            )
        query = {"start": start.isoformat(), "end": end.isoformat()}
        return self._reader.read(Costs, *self._get("/v2/billing/costs", query), UnavailableError)

    def _get(self, path: str, query: dict[str, str] | None = None) -> tuple[httpx.Response, bytes]:
        timeout = min(self.timeout, FREE_CALL_TIMEOUT)
        response, content = self._send("GET", path, timeout, params=query)
        if response.status_code != 200:
            raise responses.free_call_error(response, content, self._redact)
        return response, content

    def _send(self, method: str, path: str, timeout: float, **options: Any) -> tuple[httpx.Response, bytes]:
        """Send one request and read the whole response, within ``timeout`` seconds in total."""
        lost: type[GetimgError] = OutcomeUnknownError if method == "POST" else UnavailableError
        watch = ConnectionWatch(method, timeout)
        if method == "POST":
            options["headers"] = {"Content-Type": "application/json"}
        self._watches.add(watch)
        # Checked after the watch is registered: either abort() sees the watch, or this sees that abort() was called.
        if self._aborted:
            watch.abort()
        try:
            with (
                watch,
                self._http.stream(
                    method,
                    path,
                    timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
                    extensions=watch.extensions,
                    **options,
                ) as response,
            ):
                encoding = response.headers.get("content-encoding", "")
                try:
                    content = response_body.read(response.iter_raw(), encoding, _RESPONSE_MAX_BYTES)
                except response_body.TooLongError:
                    raise lost(
                        f"{self.base_url} returned {response.status_code} with more than "
                        f"{_RESPONSE_MAX_BYTES} bytes.",
                        status=response.status_code,
                    ) from None
                except response_body.CutOffError as cut:
                    content = self._salvage_body(cut, response, watch, method, timeout)
                return response, self._without_key(content)
        except GetimgError:
            raise
        except Exception as error:
            # Not only httpx's errors: a host that can't be encoded or a number that a socket rejects raises
            # others. What matters is whether anything was sent.
            raise self._transport_error(error, watch, method, timeout, lost) from None
        finally:
            self._watches.discard(watch)

    def _salvage_body(
        self,
        cut: response_body.CutOffError,
        response: httpx.Response,
        watch: ConnectionWatch,
        method: str,
        timeout: float,
    ) -> bytes:
        """Return a body that broke off if it holds a complete paid response; otherwise raise an error quoting it."""
        cause = cut.__cause__
        if method != "POST" or not isinstance(cause, Exception):
            raise cause or cut
        if response.is_success:
            with contextlib.suppress(ValueError):
                lenient_json.loads(cut.content)
                response.extensions[_CUT_OFF] = True
                return cut.content
        error = self._transport_error(cause, watch, method, timeout, OutcomeUnknownError)
        if not cut.content.strip():
            raise error
        quoted = OutcomeUnknownError(
            f"{error.message} Received before that: {responses.excerpt(cut.content, self._redact)}.",
            status=response.status_code,
        )
        quoted.received = self._without_key(cut.content).decode("utf-8", errors="replace")
        raise quoted

    def _transport_error(
        self,
        error: Exception,
        watch: ConnectionWatch,
        method: str,
        timeout: float,
        lost: type[GetimgError],
    ) -> GetimgError:
        reason = responses.one_line(str(error), 300, self._redact).rstrip(".") or type(error).__name__
        if not watch.sent:
            if watch.expired:
                reason = f"it took more than {timeout:g} seconds"
            return NoConnectionError(f"No connection to {self.base_url} was made: {reason}.")
        subject = "the generation" if method == "POST" else "the request"
        if watch.expired or isinstance(error, httpx.TimeoutException):
            return lost(f"{self.base_url} did not finish {subject} within {timeout:g} seconds.")
        return lost(f"The connection to {self.base_url} broke after {subject} was sent: {reason}.")

    def _without_key(self, content: bytes) -> bytes:
        """Remove the API key from a response that echoes it: parts of it are quoted, and recorded in the task's state."""
        if len(self._api_key) < _SECRET_CHARACTERS:
            # A gateway's dummy key, such as "local", may be part of a paid file's URL.
            return content
        return content.replace(self._api_key.encode(), b"***")

    def _redact(self, text: str) -> str:
        """Remove the API key and the query strings of URLs from a text meant for people."""
        return responses.redacted(text, self._api_key)
