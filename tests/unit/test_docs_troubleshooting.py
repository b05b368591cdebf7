# SPDX-License-Identifier: Apache-2.0
"""The handbook's page of error messages and the package's messages are the same."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.durable.ledger import LedgerError

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "airflow_provider_getimg"
PAGE = (REPOSITORY / "docs" / "troubleshooting.md").read_text()

# What differs from message to message, in the page as in the templates below.
HOLE = "…"
CLASSES = {
    name
    for name, member in vars(errors).items()
    if inspect.isclass(member) and issubclass(member, errors.GetimgError)
} | {LedgerError.__name__}
# Local names for one of them, where the class depends on something, and functions that build one.
MAKERS = {"lost", "unreadable", "otherwise", "kind", "_gone", "_too_large"}
# Classes that only group others.
ABSTRACT = {"GetimgError", "TransferError"}
# Values that messages are made with, and that the page spells out.
SPELT_OUT = re.compile(r"the (?:generation|request)(?= within| was sent:)")
# Said by a caller's mistake alone, or told inside another message.
NOT_FOR_USERS = {"record_intent() must come first"}


def template(node: ast.expr) -> str | None:
    """Return a text of the source with a hole for each value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(?:\.\d)?[sdrf]", HOLE, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return None


def fragments(text: str) -> list[str]:
    """Return the fixed parts of a message that say something, without the punctuation around them."""
    parts = [part.strip(" .,:;()'\"{}[]") for part in text.split(HOLE)]
    return [part for part in parts if re.search(r"\w{2}", part)]


def name_of(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else ""


@cache
def texts() -> str:
    """Return all texts of the package's source, docstrings left out."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        found += [
            text
            for node in ast.walk(tree)
            if id(node) not in docstrings and isinstance(node, ast.expr) and (text := template(node))
        ]
    return "\n".join(found)


def raised() -> list:
    """Return the message of each error that the package builds."""
    found: dict[str, str] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        folder = file.relative_to(PACKAGE).parts[0]
        if folder in ("simulator", "testing"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            makes = name_of(node) in CLASSES | MAKERS or (
                # A pydantic validator's: it becomes an InvalidInputError.
                name_of(node) == "ValueError" and file.name == "types.py"
            )
            for argument in node.args if makes else ():
                text = template(argument)
                if text and fragments(text) and text not in NOT_FOR_USERS:
                    found[f"{file.relative_to(PACKAGE)}: {text}"] = text
    return [pytest.param(text, id=name) for name, text in found.items()]


def listed() -> list[str]:
    """Return the messages of the page: all code in its tables that is no name, parameter or path."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    cells = [cell for row in rows for cell in row.strip("| ").split(" | ")[:2]]
    codes = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
    return sorted({code for code in codes if HOLE in code or code.rstrip(".").count(" ") > 2})


@pytest.mark.parametrize("message", listed())
def test_each_message_of_the_page_is_one_of_the_package(message):
    for fragment in fragments(SPELT_OUT.sub(HOLE, message)):
        assert fragment.lower() in texts().lower(), fragment


@pytest.mark.parametrize("message", raised())
def test_each_message_of_the_package_is_on_the_page(message):
    page = PAGE.lower()
    missing = [fragment for fragment in fragments(message) if fragment.lower() not in page]
    assert missing == [], "add the message to docs/troubleshooting.md, with … for what differs"


@pytest.mark.parametrize("name", sorted(CLASSES - ABSTRACT))
def test_each_error_is_on_the_page(name):
    assert f"`{name}`" in PAGE


def test_errors_of_the_page_exist():
    assert set(re.findall(r"`(\w+Error)`", PAGE)) - {"ValueError"} <= CLASSES


@pytest.mark.parametrize("billed", sorted(errors.BILLED_SENTENCE))
def test_what_it_cost_is_told_as_the_messages_tell_it(billed):
    assert errors.BILLED_SENTENCE[billed] in PAGE
