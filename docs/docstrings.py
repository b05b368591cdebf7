# SPDX-License-Identifier: Apache-2.0
"""
Turns the reStructuredText of the package's docstrings into the handbook's Markdown.

An extension of griffe, which reads the docstrings for mkdocstrings and parses ``:param x:`` and the like itself. This module
converts the rest: roles, code blocks and tables. No package on PyPI does this: griffe-sphinx reads only the ``#:`` comments
of attributes.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

# :class:`~package.module.Name` is shown as its last part, and linked. A short name is just code.
_ROLE = re.compile(r":(?:class|meth|func|attr|mod|data):`(~?)([^`]+)`")
_CODE_BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:(?: {4}.*)?\n)+(?: {4}.*)?)", re.MULTILINE)
_TABLE = re.compile(r"^(=+ +=+\n.*?\n)=+ +=+$", re.MULTILINE | re.DOTALL)


class Markdown(griffe.Extension):
    """Turns the reStructuredText of docstrings into Markdown before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of each object that has one."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
            # pydantic creates the signatures of its models at run time: griffe sees only fields.
            if (
                isinstance(obj, griffe.Class)
                and "__init__" not in obj.members
                and "dataclass" not in obj.labels
            ):
                obj.docstring.value = obj.docstring.value.replace(":param ", ":ivar ")


def markdown(text: str) -> str:
    """Return a docstring's text with roles as links or code, and with fenced code blocks."""
    text = _CODE_BLOCK.sub(_fenced, text)
    text = _TABLE.sub(lambda table: _table(table[1]), text)
    return _ROLE.sub(_link, text)


def _fenced(block: re.Match[str]) -> str:
    code = "\n".join(line[4:] for line in block[2].strip("\n").splitlines())
    return f"```{block[1]}\n{code}\n```\n"


def _table(table: str) -> str:
    """Write a simple table of two columns; a line with only one continues the row before it."""
    border, *lines = table.splitlines()
    second = border.index(" =") + 1
    rows: list[list[str]] = []
    for line in lines:
        cells = [line[:second].strip(), line[second:].strip()]
        if all(cells):
            rows.append(cells)
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    return "\n".join(
        ["| Error | Decision |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)]
    )


def _link(role: re.Match[str]) -> str:
    short, target = role.groups()
    name = target.rpartition(".")[2] if short else target
    return f"[`{name}`][{target}]" if target.startswith("airflow_provider_getimg.") else f"`{name}`"
