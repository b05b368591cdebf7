# SPDX-License-Identifier: Apache-2.0
"""Make external text safe for messages and logs."""

from __future__ import annotations

import unicodedata

# Characters that move the cursor, break a line, hide text or change its direction: controls and line separators become
# a space; format characters (zero-width, bidi overrides) and lone surrogates are dropped.
_SPACE = frozenset({"Cc", "Zl", "Zp"})
_NOTHING = frozenset({"Cf", "Cs"})


def printable(text: str) -> str:
    """Return ``text`` without control characters, so that it can't rewrite a log or a terminal."""
    if text.isprintable():
        return text
    return "".join(filter(None, map(_shown, text)))


def _shown(character: str) -> str:
    category = unicodedata.category(character)
    return " " if category in _SPACE else "" if category in _NOTHING else character
