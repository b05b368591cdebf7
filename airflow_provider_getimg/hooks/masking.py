# SPDX-License-Identifier: Apache-2.0
"""Keep the query strings and passwords of URLs out of worker logs and rendered template fields."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.api.signed_urls import secrets_in, url_without_query, without_query

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.common.compat.sdk import BaseOperator, Context
else:
    BaseOperator = object

# Airflow's masker recompiles all its patterns for each one added: a thousand would take minutes. This many cover
# any rendered field that Airflow shows, since it truncates them to 4096 characters.
_MASKS_PER_FIELD = 100
_masks: set[str] = set()


def mask_signed_urls(value: object) -> None:
    """Register the secrets in each URL in ``value``, at any depth, with Airflow's secrets masker."""
    from airflow.sdk.log import mask_secret

    new = (secret for text in _texts(value) for secret in secrets_in(text) if secret not in _masks)
    for secret in itertools.islice(new, _MASKS_PER_FIELD):
        _masks.add(secret)
        mask_secret(secret)


class Redacted:
    """
    The value of a template field, which Airflow shows without the query strings of its URLs.

    :param value: The value: dicts, lists and strings.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def serialize(self) -> Any:
        """Return the value that Airflow stores and shows."""
        return without_queries(self.value)

    def __repr__(self) -> str:
        return repr(self.serialize())


def unwrap(value: Any) -> Any:
    """Return the original value of one that may be :class:`Redacted`."""
    return value.value if isinstance(value, Redacted) else value


def without_queries(value: Any) -> Any:
    """Return a value without the query strings of its URLs, at any depth."""
    if isinstance(value, str):
        return without_query(value)
    if isinstance(value, Mapping):
        return {
            # The field of a file: all of it is one URL, while other text may continue after one.
            name: url_without_query(part)
            if name == "url" and isinstance(part, str)
            else without_queries(part)
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_queries(part) for part in value]
    return value


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


class MaskedTemplatesMixin(BaseOperator):
    """
    Keeps signed URLs out of the rendered template fields that Airflow stores and shows.

    Fields named in ``redacted_fields`` are shown without the query strings of their URLs. The secrets in other fields' URLs are
    registered with the secrets masker, which redacts the fields before they leave the task's process (not on Airflow 3.1.2).
    Both also apply to mapped tasks.
    """

    redacted_fields: tuple[str, ...] = ()

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render as Airflow does, then redact or mask signed URLs."""
        rendered = super().render_template(content, context, jinja_env, seen_oids)
        concealed = any(content is getattr(self, name, None) for name in self.redacted_fields)
        if concealed and isinstance(rendered, dict | list | tuple | str):
            return Redacted(rendered)
        mask_signed_urls(rendered)
        return rendered
