# SPDX-License-Identifier: Apache-2.0
"""The log that tests check: what arrived and when, what was billed for it, and the outcome of the response."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datetime import date

# Keep at most this much of a prompt that is refused for its length.
KEPT_PROMPT = 4096
# Crockford's base32.
ID_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ID_LENGTH = 14


def timestamp(moment: datetime) -> str:
    """Format a time as the API does: ISO 8601 in UTC, with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now() -> datetime:
    """Return the time in whole milliseconds: costs then compare ``start`` and ``end`` with exactly the times shown."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def new_id() -> str:
    """Return an id such as ``req-01HXYZABCD1234``."""
    return "req-" + "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))


@dataclass
class Post:
    """One received POST. ``outcome`` is ``None`` while it is in flight; a video's ``seconds`` are set once it is accepted."""

    kind: Literal["image", "video"]
    id: str = field(default_factory=new_id)
    received_at: datetime = field(default_factory=now)
    ended_at: datetime | None = None
    model: str | None = None
    prompt: str | None = None
    seconds: int | None = None
    status: int | None = None
    billed: Decimal = Decimal(0)
    outcome: str | None = None

    def note(self, fields: dict[str, Any]) -> None:
        """Record the model and the prompt, if they are readable."""
        if isinstance(model := fields.get("model"), str):
            self.model = model[:KEPT_PROMPT]
        if isinstance(prompt := fields.get("prompt"), str):
            self.prompt = prompt[:KEPT_PROMPT]

    def end(self, outcome: str, status: int | None) -> None:
        """Record the outcome, and the status if one was sent."""
        self.outcome, self.status, self.ended_at = outcome, status, now()

    def public(self) -> dict[str, Any]:
        """Return the entry as ``/_simulator/ledger`` shows it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "received_at": timestamp(self.received_at),
            "ended_at": self.ended_at and timestamp(self.ended_at),
            "model": self.model,
            "prompt": self.prompt,
            "seconds": self.seconds,
            "status": self.status,
            "billed": float(self.billed),
            "outcome": self.outcome,
        }


class RequestLog:
    """Every POST for an image or a video since the start or the last ``clear()``: the ledger at ``/_simulator/ledger``."""

    def __init__(self) -> None:
        self._posts: list[Post] = []

    def open(self, kind: Literal["image", "video"]) -> Post:
        """Add an entry for a POST that has just arrived."""
        post = Post(kind)
        self._posts.append(post)
        return post

    def clear(self) -> None:
        """Delete all entries, including those of POSTs still in flight."""
        self._posts.clear()

    def public(self) -> dict[str, Any]:
        """Return the log as ``/_simulator/ledger`` shows it."""
        total = sum((post.billed for post in self._posts), Decimal(0))
        return {"posts": [post.public() for post in self._posts], "billed_total": float(total)}

    def costs(self, start: datetime, end: datetime) -> dict[date, Decimal]:
        """Sum what was billed from ``start`` to ``end``, both inclusive, by UTC date."""
        costs: dict[date, Decimal] = {}
        for post in self._posts:
            if post.billed and start <= post.received_at <= end:
                day = post.received_at.date()
                costs[day] = costs.get(day, Decimal(0)) + post.billed
        return costs
