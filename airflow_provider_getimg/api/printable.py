# SPDX-License-Identifier: Apache-2.0
"""Text from elsewhere in messages and logs."""

from __future__ import annotations

import unicodedata

# What moves a cursor, breaks a line, hides text or turns its direction: controls and line separators become a space,
# formats (zero-width, bidi overrides) and halves of characters are dropped.
_SPACE = frozenset({"Cc", "Zl", "Zp"})
_NOTHING = frozenset({"Cf", "Cs"})


def printable(text: str) -> str:
    """Return a text without control characters, so that it can't rewrite a log or a terminal."""
    if text.isprintable():
        return text
    return "".join(filter(None, map(_shown, text)))


def _shown(character: str) -> str:
    category = unicodedata.category(character)
    return " " if category in _SPACE else "" if category in _NOTHING else character
