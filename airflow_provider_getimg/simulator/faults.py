# SPDX-License-Identifier: Apache-2.0
"""Faults to inject: those that a test can request, and the queue of pending ones."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from airflow_provider_getimg.simulator.errors import as_json, error_body, must_be

# The server frames the body, not the test: see 'length'.
FORBIDDEN_HEADERS = ("content-length", "transfer-encoding", "connection")
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|")
BODILESS = (204, 304)
MAX_FILES = 100
PROXY_PAGE = """<html>
<head><title>{title}</title></head>
<body><center><h1>{title}</h1></center><hr><center>getimg-simulator</center></body>
</html>
"""


def _check_headers(headers: dict[str, Any]) -> dict[str, Any]:
    for name, value in headers.items():
        text = str(value) if isinstance(value, str | int | float | None) else "\n"
        if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(text):
            raise ValueError(f"a fault's header {name!r} must be printable ASCII text, got {value!r}")
        if name.lower() in FORBIDDEN_HEADERS:
            raise ValueError(
                f"a fault can't set the header {name!r}: 'length' and the kinds wrong_length and truncate do"
            )
    return headers


def _check_has_body(status: int) -> int:
    if status in BODILESS:
        raise ValueError(f"a response with the status {status} has no body")
    return status


def _check_data(data: list[Any]) -> list[Any]:
    for entry in data:
        if isinstance(entry, dict) and "$file" in entry:
            if type(entry["$file"]) is not int or not 0 <= entry["$file"] < MAX_FILES:
                raise ValueError(
                    f"'$file' must be a number from 0 to {MAX_FILES - 1}, got {entry['$file']!r}"
                )
            if not isinstance(entry.get("$omit", []), list):
                raise ValueError(f"'$omit' must be a list of fields, got {entry['$omit']!r}")
    return data


Headers = Annotated[dict[str, Any], AfterValidator(_check_headers)]
Length = Literal["right", "padded", "none", "chunked"] | Annotated[int, Field(ge=0, le=2**53)]
Encoding = Literal["identity", "gzip", "gzip, gzip"]


class Fault(BaseModel):
    """One fault, and the number of requests it will still hit. Each kind's fields are those of its class.

    :param on: The kind of request that it hits.
    :param times: The number of requests that it still hits.
    :param seconds: Seconds to wait first; with slow_body, seconds that the body takes.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    on: Literal["image", "video", "video_status", "download", "models"]
    kind: str
    times: int = Field(1, ge=1, le=10**9)
    seconds: float = Field(0.0, ge=0, le=10**6)

    @property
    def bills(self) -> bool:
        """Whether an image that it hits is still made and billed, or a video accepted."""
        return True

    def public(self) -> dict[str, Any]:
        """Return the fault as given, with the number of requests it will still hit."""
        return {**self.model_dump(exclude_unset=True), "times": self.times}


class Break(Fault):
    """The connection closes early: before the response or in the middle of it."""

    kind: Literal["drop_before_billing", "drop_after_billing", "truncate", "wrong_length"]

    @property
    def bills(self) -> bool:
        """True except for ``drop_before_billing``."""
        return self.kind != "drop_before_billing"


class Slow(Fault):
    """The correct response, late or in small pieces."""

    kind: Literal["slow_first_byte", "slow_body"]
    seconds: float = Field(5.0, ge=0, le=10**6)


class BilledByChoice(Fault):
    """A fault for which the test chooses whether the image was made.

    :param billed: Whether the image is made and billed.
    """

    billed: bool | None = None

    @model_validator(mode="after")
    def _check_billed(self) -> BilledByChoice:
        if self.billed is not None and self.on not in ("image", "video"):
            raise ValueError(f"'billed' is for faults on image and video, not on {self.on}")
        return self

    @property
    def bills(self) -> bool:
        """True unless ``billed`` is false."""
        return self.billed is not False


class Hang(BilledByChoice):
    """No response: the connection closes after ``seconds``."""

    kind: Literal["hang"]
    seconds: float = Field(3600.0, ge=0, le=10**6)


class Reply(BilledByChoice):
    """A response that replaces the correct one.

    :param status: Its status.
    :param headers: Its headers.
    :param body: Its body, as text or JSON.
    """

    status: int = Field(200, ge=200, le=599)
    headers: Headers = {}
    body: str | dict[str, Any] | list[Any] | None = None

    @model_validator(mode="after")
    def _check_body(self) -> Reply:
        if self.body:
            _check_has_body(self.status)
        return self

    def content(self) -> tuple[str, bytes]:
        """Return the type and the bytes of its body."""
        if isinstance(self.body, dict | list):
            return "application/json", as_json(self.body)
        if isinstance(self.body, str):
            return "text/plain; charset=utf-8", self.body.encode("utf-8", "replace")
        if self.status >= 400:
            return "application/json", as_json(error_body(self.status))
        return "text/plain; charset=utf-8", b""


class StatusReply(Reply):
    """The API's response with that status."""

    kind: Literal["status"]
    status: int = Field(ge=200, le=599)

    @property
    def bills(self) -> bool:
        """True only if ``billed`` is true."""
        return self.billed is True


class HtmlReply(Reply):
    """An HTML page from a proxy."""

    kind: Literal["html"]

    @property
    def bills(self) -> bool:
        """By default, true for 2xx: a proxy that sends 200 had a response to mangle; one that sends 502 had none."""
        return self.status < 300 if self.billed is None else self.billed

    def content(self) -> tuple[str, bytes]:
        """Return the page, unless another body was given."""
        mime_type = "text/html; charset=utf-8"
        if self.status in BODILESS:
            return mime_type, b""
        if self.body is not None:
            return mime_type, super().content()[1]
        title = "Please wait" if self.status < 300 else error_body(self.status)["error"]["code"]
        return mime_type, PROXY_PAGE.format(title=f"{self.status} {title}").encode()


class Delivery(Fault):
    """The correct response, delivered in an unusual way.

    :param headers: Headers to add or replace; null removes one.
    :param encoding: How the body is compressed, and announced.
    :param length: How its length is announced.
    """

    headers: Headers = {}
    encoding: Encoding = "identity"
    length: Length = "right"


class OddResponse(Delivery):
    """An image that is made and billed, with an unusual response: see ``odd.py``.

    :param status: Its status.
    :param merge: A JSON merge patch (RFC 7396) of the good response.
    :param data: The value of ``data``, where ``{"$file": 0}`` is the good entry. Fields beside ``$file`` replace its
        own, and ``"$omit": ["mime_type"]`` drops some; other numbers are more entries of the same picture.
    :param body: Text to send instead, where ``$RESPONSE`` is the response and ``$FILE`` the good entry.
    """

    kind: Literal["response"]
    on: Literal["image", "video", "video_status"]
    status: Annotated[int, Field(ge=200, le=299), AfterValidator(_check_has_body)] = 200
    merge: dict[str, Any] = {}
    data: Annotated[list[Any], AfterValidator(_check_data)] | None = None
    body: str | None = None


class FailedVideo(Fault):
    """A video that is accepted, then fails at the end of its latency.

    :param code: The machine-readable reason.
    :param message: The human-readable reason.
    :param billed: Whether it is billed anyway.
    """

    kind: Literal["failed_video"]
    on: Literal["video"]
    code: str = "generation_failed"
    message: str = "The video could not be made."
    billed: bool = False


class OddFile(Delivery):
    """The file, delivered in an unusual way.

    :param status: The status of the response.
    :param bytes: What to send instead of the promised file.
    :param redirects: The number of redirects before it.
    """

    kind: Literal["file"]
    on: Literal["download"]
    status: Annotated[int, Field(ge=200, le=599), AfterValidator(_check_has_body)] = 200
    bytes: (
        Literal["png", "jpeg", "webp", "gif", "avif", "svg", "html", "json", "text", "nothing", "zip"] | None
    ) = None
    redirects: int = Field(0, ge=0, le=1000)


AnyFault = Annotated[
    Break | Slow | Hang | StatusReply | HtmlReply | OddResponse | FailedVideo | OddFile,
    Field(discriminator="kind"),
]
FAULT: TypeAdapter[Fault] = TypeAdapter(AnyFault)
MODELS: dict[str, type[Fault]] = {
    kind: model
    for model in get_args(get_args(AnyFault)[0])
    for kind in get_args(model.model_fields["kind"].annotation)
}


class FaultQueue:
    """The pending faults, in the order they were added."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._redirected: dict[str, OddFile] = {}

    def add(self, specs: object) -> None:
        """Add all of the faults, or none of them.

        :raises ValueError: One of them is invalid; the message is one sentence.
        """
        if not isinstance(specs, list):
            raise ValueError("'faults' must be a list of faults")
        self._faults += [parse_fault(spec) for spec in specs]

    def take(self, on: str) -> Fault | None:
        """Return the next fault for this kind of request, if there is one, and count it down."""
        for fault in self._faults:
            if fault.on == on:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
                return fault
        return None

    def redirect(self, fault: OddFile) -> str:
        """Return a token for the next request in a chain of redirects."""
        token = secrets.token_hex(8)
        self._redirected[token] = fault.model_copy(update={"redirects": fault.redirects - 1, "seconds": 0.0})
        return token

    def follow(self, token: str) -> OddFile | None:
        """Return the fault that redirected to this request, if any. The request may be repeated."""
        return self._redirected.get(token)

    def clear(self) -> None:
        """Drop all pending faults. One that is in progress runs to its end."""
        self._faults.clear()

    def public(self) -> list[dict[str, Any]]:
        """Return the pending faults."""
        return [fault.public() for fault in self._faults]


def parse_fault(spec: object) -> Fault:
    """Check one fault.

    :raises ValueError: It is invalid; the message is one sentence.
    """
    if not isinstance(spec, dict):
        raise ValueError(f"a fault must be an object such as {{'on': 'image', 'kind': 'hang'}}, got {spec!r}")
    # Null means not given: a caller may send every field of its own class.
    given = {name: value for name, value in spec.items() if value is not None}
    try:
        return FAULT.validate_python(given)
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    """Return the first error as one sentence."""
    first, *others = error.errors(include_url=False)
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"].startswith("union_tag"):
        return f"a fault's 'kind' must be one of {', '.join(MODELS)}, got {first['input'].get('kind')!r}"
    kind, name = first["loc"][:2]
    if first["type"] == "missing":
        return f"a fault of the kind {kind} needs {name!r}"
    if first["type"] == "extra_forbidden":
        fields = ", ".join(MODELS[str(kind)].model_fields)
        return f"a fault of the kind {kind} has no field {name!r}: it has {fields}"
    # One error for each type that the field may have.
    same = [other for other in others if other["loc"][:2] == (kind, name)]
    return must_be(f"a fault's {name!r}", first, *same)
