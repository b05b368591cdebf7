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

# Airflow's masker recompiles all its patterns with each that is added: a thousand would take minutes. This many cover
# any rendered field that Airflow shows, as it cuts them at 4096 characters.
_MASKS_PER_FIELD = 100
_masks: set[str] = set()


def mask_signed_urls(value: object) -> None:
    """Register what is secret in each URL inside ``value``, however deep, with Airflow's secrets masker."""
    from airflow.sdk.log import mask_secret

    new = (secret for text in _texts(value) for secret in secrets_in(text) if secret not in _masks)
    for secret in itertools.islice(new, _MASKS_PER_FIELD):
        _masks.add(secret)
        mask_secret(secret)


class Redacted:
    """
    A value of a template field that Airflow shows without the query strings of its URLs.

    :param value: The value: dicts, lists and texts.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def serialize(self) -> Any:
        """Return what Airflow stores and shows of the field."""
        return without_queries(self.value)

    def __repr__(self) -> str:
        return repr(self.serialize())


def unwrap(value: Any) -> Any:
    """Return the value itself of one that may be concealed."""
    return value.value if isinstance(value, Redacted) else value


def without_queries(value: Any) -> Any:
    """Return a value with the query strings of URLs cut off, however deep they are."""
    if isinstance(value, str):
        return without_query(value)
    if isinstance(value, Mapping):
        return {
            # The field of a file: all of it is one URL, where a text may go on after one.
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

    Fields named in ``redacted_fields`` are shown without the query strings of their URLs. What is signed in the others is
    registered with the secrets masker, which redacts the fields before they leave the task's process (not on Airflow 3.1.2). Both
    hold for mapped tasks as well.
    """

    redacted_fields: tuple[str, ...] = ()

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render as Airflow does, then see to it that nothing signed is shown."""
        rendered = super().render_template(content, context, jinja_env, seen_oids)
        concealed = any(content is getattr(self, name, None) for name in self.redacted_fields)
        if concealed and isinstance(rendered, dict | list | tuple | str):
            return Redacted(rendered)
        mask_signed_urls(rendered)
        return rendered
