# SPDX-License-Identifier: Apache-2.0
"""Faults to be played: what a test may ask for, and the queue of those still due."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_getimg.simulator.errors import as_json, error_body

TARGETS = ("image", "download", "models")
KINDS = (
    "status",
    "hang",
    "slow_first_byte",
    "slow_body",
    "drop_before_billing",
    "drop_after_billing",
    "truncate",
    "wrong_length",
    "html",
)
FIELDS = ("on", "kind", "status", "headers", "body", "seconds", "times", "billed")
# The kinds that send an answer of their own, and those whose billing is open to choice.
SPEAKING_KINDS = ("status", "html")
BILLED_BY_CHOICE = ("status", "html", "hang")
DEFAULT_SECONDS = {"hang": 3600.0, "slow_first_byte": 5.0, "slow_body": 5.0}
# A body that ends where its length says is the server's business, not the test's: see wrong_length.
FORBIDDEN_HEADERS = ("content-length", "transfer-encoding", "connection")
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|")
BODILESS = (204, 304)
PROXY_PAGE = """<html>
<head><title>{title}</title></head>
<body><center><h1>{title}</h1></center><hr><center>getimg-simulator</center></body>
</html>
"""


# Two equal faults are two faults.
@dataclass(eq=False)
class Fault:
    """One fault, and how many more requests it will hit."""

    on: str
    kind: str
    seconds: float
    times: int
    bills: bool
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    spec: dict[str, Any] = field(default_factory=dict)

    def public(self) -> dict[str, Any]:
        """Return the fault as it was asked for, with the number of requests it will still hit."""
        return {**self.spec, "times": self.times}


class FaultQueue:
    """The faults still due, in the order in which they came."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, specs: object) -> None:
        """Add all of the faults, or none of them.

        :raises ValueError: With one sentence, where one of them can't be played.
        """
        if not isinstance(specs, list):
            raise ValueError("'faults' must be a list of faults")
        self._faults += [parse_fault(spec) for spec in specs]

    def take(self, on: str) -> Fault | None:
        """Return the fault that this request is to be hit by, if there is one."""
        for fault in self._faults:
            if fault.on == on:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
                return fault
        return None

    def clear(self) -> None:
        """Drop all faults. One that is being played is played to its end."""
        self._faults.clear()

    def public(self) -> list[dict[str, Any]]:
        """Return the faults still due."""
        return [fault.public() for fault in self._faults]


def parse_fault(spec: object) -> Fault:
    """Check one fault.

    :raises ValueError: With one sentence, if it can't be played.
    """
    if not isinstance(spec, Mapping):
        raise ValueError(f"a fault must be an object such as {{'on': 'image', 'kind': 'hang'}}, not {spec!r}")
    # A field that is null was not given: a caller may send every field of its own class.
    given = {name: value for name, value in spec.items() if value is not None}
    for name in given:
        if name not in FIELDS:
            raise ValueError(f"a fault has no field {name!r}: it has {', '.join(FIELDS)}")
    on, kind = _one_of(given, "on", TARGETS), _one_of(given, "kind", KINDS)
    if kind not in SPEAKING_KINDS:
        for name in ("status", "headers", "body"):
            if name in given:
                raise ValueError(
                    f"{name!r} is for faults of the kind {' or '.join(SPEAKING_KINDS)}, not {kind}"
                )
    if kind == "status" and "status" not in given:
        raise ValueError("a fault of the kind status needs a 'status'")
    status = _whole(given, "status", 200, 200, 599)
    headers, body = _answer(given, kind, status)
    return Fault(
        on=on,
        kind=kind,
        seconds=_seconds(given, kind),
        times=_whole(given, "times", 1, 1, 10**9),
        bills=_bills(given, on, kind, status),
        status=status,
        headers=headers,
        body=body,
        spec=given,
    )


def _one_of(given: dict[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = given.get(name)
    if value not in choices or not isinstance(value, str):
        raise ValueError(f"a fault's {name!r} must be one of {', '.join(choices)}, not {value!r}")
    return value


def _whole(given: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"a fault's {name!r} must be a whole number from {least} to {most}, not {value!r}")
    return value


def _seconds(given: dict[str, Any], kind: str) -> float:
    value = given.get("seconds", DEFAULT_SECONDS.get(kind, 0.0))
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 10**6:
        raise ValueError(f"a fault's 'seconds' must be a number from 0 to 1000000, not {value!r}")
    return float(value)


def _bills(given: dict[str, Any], on: str, kind: str, status: int) -> bool:
    if "billed" in given:
        if on != "image" or kind not in BILLED_BY_CHOICE or not isinstance(given["billed"], bool):
            raise ValueError(
                f"'billed' is true or false, on image, for the kinds {', '.join(BILLED_BY_CHOICE)}"
            )
        return given["billed"]
    if kind in ("status", "drop_before_billing"):
        return False
    # A proxy that says 200 had an answer to mangle; one that says 502 had none.
    return kind != "html" or status < 300


def _answer(given: dict[str, Any], kind: str, status: int) -> tuple[dict[str, str], bytes]:
    """Return the headers and body of the kinds that send an answer of their own."""
    body = given.get("body")
    if status in BODILESS and body:
        raise ValueError(f"an answer with the status {status} has no body")
    if isinstance(body, dict | list):
        mime_type, content = "application/json", as_json(body)
    elif isinstance(body, str):
        mime_type, content = "text/plain; charset=utf-8", body.encode("utf-8", "replace")
    elif body is not None:
        raise ValueError(f"a fault's 'body' must be text or JSON, not {body!r}")
    elif kind == "html":
        title = f"{status} " + ("Please wait" if status < 300 else error_body(status)["error"]["code"])
        mime_type, content = "text/html", PROXY_PAGE.format(title=title).encode()
    elif status >= 400:
        mime_type, content = "application/json", as_json(error_body(status))
    else:
        mime_type, content = "text/plain; charset=utf-8", b""
    if kind == "html":
        mime_type = "text/html; charset=utf-8"
        content = b"" if status in BODILESS else content
    headers = {"Content-Type": mime_type}
    headers.update(_headers(given.get("headers", {})))
    return headers, content


def _headers(headers: object) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise ValueError(f"a fault's 'headers' must be an object, not {headers!r}")
    checked = {}
    for name, value in headers.items():
        text = str(value) if isinstance(value, str | int | float) else "\n"
        if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(text):
            raise ValueError(f"a fault's header {name!r} must be printable ASCII text, not {value!r}")
        if name.lower() in FORBIDDEN_HEADERS:
            raise ValueError(f"a fault can't set the header {name!r}: the kinds wrong_length and truncate do")
        checked["Content-Type" if name.lower() == "content-type" else name] = text
    return checked
