# SPDX-License-Identifier: Apache-2.0
"""
Signed URLs in text that people read.

The query string of a signed URL is a credential: whoever has it has the file. It must not stand in
a log line or an error message.
"""

from __future__ import annotations

import re

# Slashes may be escaped, as JSON allows. The scheme is bounded, and begins where a word does: without that a
# long word takes quadratic time.
_URL_WITH_QUERY = re.compile(
    r"""(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{0,20}:\\?/\\?/[^\s"'<>?#]+)[?#]([^\s"'<>]*)"""
)


def without_query(text: str) -> str:
    """
    Cut the query string off every URL in ``text``.

    ``https://host/file?exp=1&sig=ab`` becomes ``https://host/file?...``.
    """
    return _URL_WITH_QUERY.sub(r"\1?...", text)


def queries_in(text: str) -> list[str]:
    """Return the query string of every URL in ``text``, wherever it stands."""
    return [query for _, query in _URL_WITH_QUERY.findall(text) if query]


def reason(error: BaseException) -> str:
    """Return what an exception says for the middle of a sentence: one line, nothing signed, no full stop."""
    return " ".join(without_query(str(error)).split()).rstrip(".")[:300] or type(error).__name__
