# SPDX-License-Identifier: Apache-2.0
"""Keep the query strings of signed URLs out of worker logs and rendered template fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.common.compat.sdk import BaseOperator, Context
else:
    BaseOperator = object

# A signature is longer than this; masking shorter values would blacken innocent words in the log.
_SIGNATURE_MIN_CHARACTERS = 16


def mask_signed_urls(value: object) -> None:
    """Register the query string of every URL inside ``value`` with Airflow's secrets masker."""
    from airflow.sdk.log import mask_secret

    for url in _urls(value):
        query = urlsplit(url).query
        if not query:
            continue
        mask_secret(query)
        for _, part in parse_qsl(query):
            if len(part) >= _SIGNATURE_MIN_CHARACTERS:
                mask_secret(part)


def _urls(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if value.startswith(("https://", "http://")):
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _urls(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _urls(part)


class MaskedTemplatesMixin(BaseOperator):
    """
    Registers signed URLs in rendered template fields before Airflow stores and shows those fields.

    Airflow redacts rendered fields in the task's own process, after :meth:`render_template` and before
    they leave it; that is the one moment to register. It holds for mapped tasks as well.
    """

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render as Airflow does, then register what must not be shown."""
        rendered = super().render_template(content, context, jinja_env, seen_oids)
        mask_signed_urls(rendered)
        return rendered
