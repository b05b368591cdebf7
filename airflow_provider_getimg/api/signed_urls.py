# SPDX-License-Identifier: Apache-2.0
"""
Mask signed URLs in text that people read.

The query string of a signed URL is a credential: whoever has it has the file. So is a URL's user part
(``https://user:password@host``). Neither may appear in a log line or an error message.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Only this much of a longer text is examined and returned.
MAX_CHARACTERS = 1_000_000

# Slashes may be escaped, as JSON allows. Before them is a scheme, or what a server would take for one.
_AUTHORITY_BEGINS = re.compile(r":\\?/\\?/")
_SCHEME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+.-")
_SCHEME_CHARACTERS = 20
# A URL ends at white space, and one that follows a quote ends at the next quote of the same kind: others may be part of
# it. Within quotes, a backslash escapes the next character. If the quote itself is escaped, the depth is unknown: to be
# safe, the URL ends at white space.
_UNQUOTED = re.compile(r"\S*")
_QUOTED = {quote: re.compile(rf"[^\s\\{quote}]*(?:\\\S[^\s\\{quote}]*)*") for quote in "'\""}

# Characters where a URL may have ended, although they could be part of it.
_PERHAPS_THE_END = re.compile(r"""["'<>]""")
# A signature by its parameter name, for a URL without a scheme or cut off before its query. Bounded: linear time.
_SIGNATURE = re.compile(r"([?&;][\w-]{0,32}(?:sig|signature|token))=[^\s&\"'<>\\]+", re.IGNORECASE)
# Anything shorter is not a signature, and masking it would blot out half a log.
_SECRET_CHARACTERS = 6


def without_query(text: str) -> str:
    """
    Remove the query string and the user part from every URL in ``text``.

    ``https://user:pw@host/file?exp=1&sig=ab`` becomes ``https://***@host/file?...``. Runs in linear time.
    """
    cut = text[:MAX_CHARACTERS]
    shown: list[str] = []
    position = 0
    for begin, end in _urls(cut):
        shown += cut[position:begin], _without_secrets(cut[begin:end])
        position = end
    shown.append(cut[position:] if len(cut) == len(text) else f"{cut[position:]}...")
    return _SIGNATURE.sub(r"\1=***", "".join(shown))


def url_without_query(url: str) -> str:
    """Do the same as :func:`without_query` for a single URL, whatever characters it contains."""
    begins = _AUTHORITY_BEGINS.search(url, 0, MAX_CHARACTERS)
    if begins is None:
        path, mark, _ = url.partition("?")
        return f"{path}?..." if mark else url
    return url[: begins.end()] + _without_secrets(url[begins.end() : MAX_CHARACTERS])


def secrets_in(text: str) -> list[str]:
    """Return the query strings and passwords of the URLs in ``text``, and of ``text`` itself if it is a URL."""
    cut = text[:MAX_CHARACTERS]
    found: dict[str, None] = {}
    begins = _AUTHORITY_BEGINS.search(cut)
    if begins is not None and set(cut[: begins.start()]) <= _SCHEME:
        found |= dict.fromkeys(_secrets_of(cut[begins.end() :]))
    for begin, end in _urls(cut):
        url = cut[begin:end]
        found |= dict.fromkeys(_secrets_of(url))
        for part in _PERHAPS_THE_END.split(url):
            query = _split(part)[2].rstrip("\\")
            if len(query) >= _SECRET_CHARACTERS:
                found[query] = None
    return list(found)


def reason(error: BaseException) -> str:
    """Return an exception's message for use within a sentence: one line, no signatures, no final period."""
    return " ".join(printable(without_query(str(error))).split()).rstrip(".")[:300] or type(error).__name__


def _urls(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the authority of each URL in a text begins, and where the URL ends."""
    position = 0
    while begins := _AUTHORITY_BEGINS.search(text, position):
        before = _before_scheme(text, begins.start())
        url = _QUOTED.get(before, _UNQUOTED).match(text, begins.end())
        position = begins.end() if url is None else url.end()
        if before == "<" and text[position - 1] == ">":
            position -= 1
        yield begins.end(), position


def _before_scheme(text: str, colon: int) -> str:
    """Return the character before the scheme that ends at a colon; empty if it is escaped or there is none."""
    start = colon
    while start > max(0, colon - _SCHEME_CHARACTERS) and text[start - 1] in _SCHEME:
        start -= 1
    return "" if text[start - 2 : start - 1] == "\\" else text[start - 1 : start]


def _split(rest: str) -> tuple[str, str, str, bool]:
    """Split what follows ``://``: the user part, host and path, query with fragment, and whether there is one."""
    path, mark, _ = rest.partition("?")
    path = path.partition("#")[0]
    has_query = bool(mark) or len(path) < len(rest)
    authority = re.split(r"[/\\]", path, maxsplit=1)[0]
    user = authority.rpartition("@")[0]
    return user, path[len(user) + 1 if "@" in authority else 0 :], rest[len(path) + 1 :], has_query


def _without_secrets(rest: str) -> str:
    user, place, _, has_query = _split(rest)
    return f"{'***@' if user else ''}{place}{'?...' if has_query else ''}"


def _secrets_of(rest: str) -> list[str]:
    user, _, query, _ = _split(rest)
    password = user.partition(":")[2]
    return [secret for secret in (query, password) if secret]
