# SPDX-License-Identifier: Apache-2.0
"""The simulator as a test sees it: its ledger, faults and balance."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, overload
from urllib.parse import urlsplit

from airflow_provider_getimg.simulator.errors import error_body
from airflow_provider_getimg.testing.server import SimulatorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from airflow_provider_getimg.testing.server import SimulatorProcess

#: What a paid request makes.
PaidKind = Literal["image", "video"]
START_BALANCE = "100.00"
CONTROL_SECONDS = 30.0


class Control:
    """A client for the simulator's own endpoints. Uses ``http.client``, which ignores proxies: tests may patch ``httpx``."""

    def __init__(self, url: str, api_key: str) -> None:
        self._netloc = urlsplit(url).netloc
        self._api_key = api_key

    def request(self, method: str, path: str, body: object = None) -> Any:
        """
        Call an endpoint and return its JSON, or ``None`` if there is no content.

        :raises ValueError: The simulator refused the request; the message is its own.
        :raises SimulatorError: It doesn't respond.
        """
        connection = http.client.HTTPConnection(self._netloc, timeout=CONTROL_SECONDS)
        content = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._api_key}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            received = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise SimulatorError(
                f"The simulator at {self._netloc} doesn't respond: {type(error).__name__}."
            ) from None
        finally:
            connection.close()
        parsed: Any = json.loads(received) if received else None
        if response.status >= 400:
            raise ValueError(parsed["error"]["message"])
        return parsed


@dataclass(frozen=True)
class LoggedRequest:
    """
    One received request for an image or a video, refused or not, and its outcome.

    ``billed`` is in USD; ``status`` is ``None`` if no response was sent. ``outcome`` is ``delivered``, ``dropped``,
    ``truncated``, ``hung``, ``refused``, or ``None`` while the request is in flight, like ``ended_at``. ``model`` and ``prompt`` are
    ``None`` if the body could not be read. ``kind`` is ``image`` or ``video``; ``seconds`` is the length of an accepted video.
    """

    id: str
    kind: str
    received_at: datetime
    ended_at: datetime | None
    model: str | None
    prompt: str | None
    seconds: int | None
    status: int | None
    billed: float
    outcome: str | None


class RequestLog(Sequence[LoggedRequest]):
    """
    All requests and what was billed for them, oldest first: a sequence of :class:`LoggedRequest`.

    Always current: each access asks the simulator. Amounts are in USD, summed as decimals and then converted to floats, so
    that they equal a literal: ``ledger.total_cost == 0.12``.
    """

    def __init__(self, control: Control) -> None:
        self._control = control

    def raw(self) -> dict[str, Any]:
        """Return the log as the simulator's endpoint shows it: ``{"posts": [...], "billed_total": ...}``."""
        ledger: dict[str, Any] = self._control.request("GET", "/_simulator/ledger")
        return ledger

    @property
    def entries(self) -> list[LoggedRequest]:
        """All requests."""
        return [
            LoggedRequest(**post | {name: _moment(post[name]) for name in ("received_at", "ended_at")})
            for post in self.raw()["posts"]
        ]

    @property
    def billed(self) -> list[LoggedRequest]:
        """The requests that cost something."""
        return [entry for entry in self.entries if entry.billed]

    @property
    def prompts(self) -> list[str | None]:
        """The prompts of all requests."""
        return [entry.prompt for entry in self.entries]

    @property
    def total_cost(self) -> float:
        """The total billed, in USD."""
        return float(self.raw()["billed_total"])

    def clear(self) -> None:
        """Delete all entries. The balance does not change."""
        self._control.request("DELETE", "/_simulator/ledger")

    @overload
    def __getitem__(self, index: int) -> LoggedRequest: ...
    @overload
    def __getitem__(self, index: slice) -> list[LoggedRequest]: ...
    def __getitem__(self, index: int | slice) -> LoggedRequest | list[LoggedRequest]:
        return self.entries[index]

    def __len__(self) -> int:
        return len(self.raw()["posts"])

    # One call for all entries: Sequence's own methods would make one for each entry.
    def __iter__(self) -> Iterator[LoggedRequest]:
        return iter(self.entries)

    def __reversed__(self) -> Iterator[LoggedRequest]:
        return reversed(self.entries)

    def __contains__(self, entry: object) -> bool:
        return entry in self.entries

    def __repr__(self) -> str:
        return f"<RequestLog {self.entries!r}>"


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


class Faults:
    """
    Faults for the next requests, used up in the order they were queued.

    Each hits the next ``times`` (default 1) requests that would have been served: for images, with ``on="video"`` for videos, or
    downloads.
    """

    def __init__(self, control: Control) -> None:
        self._control = control

    @property
    def pending(self) -> list[dict[str, Any]]:
        """The pending faults. Empty at the end of a test that used them all."""
        faults: list[dict[str, Any]] = self._control.request("GET", "/_simulator/faults")["faults"]
        return faults

    def add(self, *faults: dict[str, Any]) -> None:
        """
        Queue any faults that the simulator supports, as described in ``docs/simulator.md``.

        :param faults: Such as ``{"on": "image", "kind": "truncate", "times": 2}``.
        :raises ValueError: One of them is invalid; then none is queued.
        """
        self._control.request("POST", "/_simulator/faults", {"faults": list(faults)})

    def clear(self) -> None:
        """Drop the pending faults."""
        self._control.request("DELETE", "/_simulator/faults")

    def refused(
        self,
        status: int,
        *,
        message: str | None = None,
        code: str | None = None,
        times: int = 1,
        on: PaidKind = "image",
    ) -> None:
        """
        Refuse requests as the API does with this status. Nothing is billed.

        :param status: Such as 400, 401, 403, 422.
        :param message: The API's error message. Default: that of the status.
        :param code: The API's error code. Default: that of the status.
        """
        self._on(on, "status", times, status=status, body=error_body(status, message, code=code))

    def insufficient_balance(self, *, times: int = 1, on: PaidKind = "image") -> None:
        """Refuse requests with a 402. For an account that stays empty, set the simulator's balance to 0."""
        self.refused(402, times=times, on=on)

    def rate_limit(self, *, retry_after: float | None = 60, times: int = 1, on: PaidKind = "image") -> None:
        """
        Refuse requests with a 429. Nothing is billed.

        :param retry_after: Seconds to wait before another try, sent as ``Retry-After``; ``None`` sends none. A
            wait within the operator's ``rate_limit_wait`` takes real time; a longer one becomes a retry, which
            ``run_dag`` makes immediate.
        """
        headers = None if retry_after is None else {"Retry-After": f"{retry_after:g}"}
        self._on(on, "status", times, status=429, headers=headers)

    def server_error(
        self, status: int = 500, *, billed: bool = False, times: int = 1, on: PaidKind = "image"
    ) -> None:
        """
        Respond with a 5xx, which leaves the outcome unknown to the caller.

        :param billed: Whether it was made and billed anyway.
        """
        self._on(on, "status", times, status=status, billed=billed)

    def timeout(self, *, billed: bool = True, times: int = 1, on: PaidKind = "image") -> None:
        """
        Accept requests and never respond. Set ``getimg_conn.timeout`` too, or the test waits 30 seconds.

        :param billed: Whether it was made and billed anyway.
        """
        self._on(on, "hang", times, billed=billed)

    def dropped(self, *, billed: bool = True, times: int = 1, on: PaidKind = "image") -> None:
        """
        Close the connection without sending a byte of a response.

        :param billed: Whether it was made and billed anyway.
        """
        self._on(on, "drop_after_billing" if billed else "drop_before_billing", times)

    def slow(self, seconds: float, *, times: int = 1, on: PaidKind = "image") -> None:
        """
        Respond to requests only after a delay.

        :param seconds: The delay, during which nothing is sent.
        """
        self._on(on, "slow_first_byte", times, seconds=seconds)

    def failed_video(
        self, *, code: str | None = None, message: str | None = None, billed: bool = False, times: int = 1
    ) -> None:
        """
        Accept videos, then fail to make them.

        :param code: The API's error code.
        :param message: The API's error message.
        :param billed: Whether they are billed anyway.
        """
        self._on("video", "failed_video", times, code=code, message=message, billed=billed)

    def expired_url(self, *, times: int = 1) -> None:
        """Respond to downloads with a 410: the signed URL has expired."""
        self.download_error(410, times=times)

    def download_error(self, status: int = 500, *, times: int = 1) -> None:
        """Respond to downloads with an error."""
        self._on("download", "status", times, status=status)

    def odd_response(
        self,
        *,
        merge: Mapping[str, Any] | None = None,
        data: Sequence[Any] | None = None,
        body: str | None = None,
        status: int = 200,
        headers: Mapping[str, str | None] | None = None,
        encoding: str | None = None,
        length: int | str | None = None,
        times: int = 1,
        on: PaidKind = "image",
    ) -> None:
        """
        Make and bill images or videos, but respond in an unusual way.

        :param merge: A JSON merge patch (RFC 7396) of the response: ``{"status": "succeeded"}``.
        :param data: The value of ``data``; ``{"$file": 0}`` is the good entry, ``{"$file": 0, "mime_type": None}``
            the same with a field replaced, ``{"$file": 0, "$omit": ["mime_type"]}`` without it.
        :param body: Text to send instead; ``$RESPONSE`` in it is the response, ``$FILE`` the good entry.
        :param status: Its status, 2xx.
        :param headers: Headers to add or replace; ``None`` removes one.
        :param encoding: ``gzip`` or ``gzip, gzip``: how the body is compressed.
        :param length: How its length is announced: ``padded``, ``none``, ``chunked``, or a number.
        """
        odd = {"merge": merge, "data": data, "body": body, "status": status}
        self._on(on, "response", times, **odd, headers=headers, encoding=encoding, length=length)

    def odd_file(
        self,
        *,
        bytes: str | None = None,
        status: int = 200,
        headers: Mapping[str, str | None] | None = None,
        encoding: str | None = None,
        length: int | str | None = None,
        redirects: int = 0,
        times: int = 1,
    ) -> None:
        """
        Send files in an unusual way.

        :param bytes: What to send, whatever was promised: ``png``, ``jpeg``, ``webp``, ``gif``, ``avif``, ``svg``,
            ``html``, ``json``, ``text``, ``zip`` or ``nothing``. Default: the file.
        :param status: The status of the response, such as 203, 206 or 404.
        :param headers: Headers to add or replace; ``None`` removes one.
        :param encoding: ``gzip`` or ``gzip, gzip``: how the body is compressed.
        :param length: How its length is announced: ``padded``, ``none``, ``chunked``, or a number.
        :param redirects: The number of redirects before the file.
        """
        odd = {"bytes": bytes, "redirects": redirects, "status": status}
        self._on("download", "file", times, **odd, headers=headers, encoding=encoding, length=length)

    def _on(self, on: str, kind: str, times: int, **fields: Any) -> None:
        self.add({"on": on, "kind": kind, "times": times, **fields})


class GetimgSimulator:
    """
    A running simulator, as a test uses it.

    :param process: The process, already started.
    """

    def __init__(self, process: SimulatorProcess) -> None:
        self.process = process
        self._control = Control(process.url, process.api_key)
        self._started_with: dict[str, Any] = self._control.request("GET", "/_simulator/settings")
        #: What was requested and billed.
        self.ledger = RequestLog(self._control)
        #: Queues faults for the next requests.
        self.faults = Faults(self._control)

    @property
    def url(self) -> str:
        """The base URL, ``http://127.0.0.1:PORT``."""
        return self.process.url

    @property
    def api_key(self) -> str:
        """The key that it accepts."""
        return self.process.api_key

    @property
    def balance(self) -> float:
        """The account's balance in USD, 100 at the start of each test. Can be set to any amount."""
        return float(self._control.request("GET", "/v2/billing/balance")["balance"])

    @balance.setter
    def balance(self, amount: float | Decimal | str) -> None:
        self._control.request("PUT", "/_simulator/balance", {"balance": str(amount)})

    def settings(self, **changes: object) -> dict[str, Any]:
        """
        Change settings for the rest of the test, and return all of them.

        :param changes: ``latency``, ``max_latency``, ``video_latency``, ``download_latency`` and ``media_lifetime`` (seconds), ``rpm``
            and ``concurrency`` (limits on requests, 0 for none), ``file_size`` (bytes); ``preset="account"`` for the
            limits and latency of a real account, ``time_scale=20`` to make all times pass 20 times as fast.
        :raises ValueError: There is no such setting, or its value is invalid.
        """
        settings: dict[str, Any] = self._control.request("PUT", "/_simulator/settings", changes)
        return settings

    def reset(self) -> None:
        """
        Return to the initial state: the initial settings, no faults, no videos, an empty ledger, a balance of 100 USD.

        :raises SimulatorError: It has died; with the last lines of its output.
        """
        self.process.check()
        self.faults.clear()
        self.settings(**self._started_with)
        # What an earlier test abandoned would be billed in the middle of the next one.
        self._control.request("DELETE", "/_simulator/generations")
        self.balance = float(START_BALANCE)
        self.ledger.clear()

    def __repr__(self) -> str:
        return f"<GetimgSimulator {self.url}>"
