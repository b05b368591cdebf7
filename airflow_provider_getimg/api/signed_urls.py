# SPDX-License-Identifier: Apache-2.0
"""
Signed URLs in text that people read.

The query string of a signed URL is a credential: whoever has it has the file. It must not stand in
a log line or an error message.
"""

from __future__ import annotations

import re

_URL_WITH_QUERY = re.compile(r"""([A-Za-z][A-Za-z0-9+.-]*://[^\s"'<>?#]+)[?#][^\s"'<>]*""")


def without_query(text: str) -> str:
    """
    Cut the query string off every URL in ``text``.

    ``https://host/file?exp=1&sig=ab`` becomes ``https://host/file?...``.
    """
    return _URL_WITH_QUERY.sub(r"\1?...", text)
