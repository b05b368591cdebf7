# SPDX-License-Identifier: Apache-2.0
"""The handbook agrees with the code on each error class: its base class, its bill, its retries and its messages."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest

import airflow_provider_getimg
from airflow_provider_getimg.api.errors import BILLED_SENTENCE, GetimgError
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.version_compat import RetryAction

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "airflow_provider_getimg"
PAGE = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
REFERENCE = (REPOSITORY / "docs" / "reference" / "errors.md").read_text()

# Stands for what varies between messages, on the page and in the strings of the source.
HOLE = "…"
# How an entry's "Billed:" starts, by the class's ``billed``.
BILLED = {"no": "no", "unknown": "perhaps", "yes": "yes"}
# Values inserted into messages, which the page spells out.
SPELT_OUT = re.compile(r"the (?:generation|request)(?= within| was sent)")


def subclasses(root: type[GetimgError]) -> list[type[GetimgError]]:
    direct = [
        kind for kind in root.__subclasses__() if kind.__module__.startswith("airflow_provider_getimg.")
    ]
    return [*direct, *(kind for parent in direct for kind in subclasses(parent))]


def classes() -> dict[str, type[GetimgError]]:
    """Return every error class of the package except the root, which is never raised."""
    for module in walk_packages(airflow_provider_getimg.__path__, "airflow_provider_getimg."):
        if module.name.split(".")[1] not in {"simulator", "testing"}:
            import_module(module.name)
    return {kind.__name__: kind for kind in subclasses(GetimgError)}


CLASSES = classes()
SECTIONS = dict(re.findall(r"^### (\w+)\n\n(.+?)(?=^#)", f"{PAGE}\n#", re.MULTILINE | re.DOTALL))
# A row of a section's table or list may be the entry of a subclass: the section's bill and retries apply to it.
ROWS = [
    (row, name)
    for name, section in SECTIONS.items()
    for row in re.findall(r"^(?:- |\| )`(\w+Error)`(?:,| \|)", section, re.MULTILINE)
    if row != name
]
ENTRIES = {**SECTIONS, **{row: SECTIONS[name] for row, name in ROWS}}


def response(name: str, question: str) -> str:
    """Return what an entry says after ``Billed:`` or ``Retried:``."""
    found = re.search(rf"\*\*{question}:\*\* ([^*]+)", ENTRIES[name])
    assert found, f"the entry of {name} has no {question}"
    return found[1]


def text_of(node: ast.expr) -> str | None:
    """Return a string of the source with a hole for each value; None for other expressions."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(?:\.\d)?[sdrf]", HOLE, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return None


@cache
def texts() -> str:
    """Return all strings of the package's source, in lower case."""
    nodes = (node for file in sorted(PACKAGE.rglob("*.py")) for node in ast.walk(ast.parse(file.read_text())))
    found = (text_of(node) for node in nodes if isinstance(node, ast.expr))
    return "\n".join(text for text in found if text).lower()


def quoted() -> list[str]:
    """Return the messages that the page quotes: its code spans except names, values and paths."""
    codes = {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", PAGE)}
    return sorted(code for code in codes if code != HOLE and (HOLE in code or code.count(" ") > 3))


def test_error_classes_and_entries_correspond_one_to_one():
    assert set(ENTRIES) == set(CLASSES)
    assert len(ENTRIES) == len(SECTIONS) + len(ROWS)


@pytest.mark.parametrize(("row", "section"), ROWS)
def test_row_entry_is_in_the_section_of_its_base_class(row, section):
    assert issubclass(CLASSES[row], CLASSES[section])


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_entry_states_the_same_retry_and_bill_as_the_code(name):
    error = CLASSES[name].__new__(CLASSES[name])
    error.retry_after, error.failures = 1.0, ()  # type: ignore[attr-defined]

    decision = RETRY_POLICY.evaluate(error, try_number=1, max_tries=3)
    assert response(name, "Retried").startswith("no" if decision.action is RetryAction.FAIL else "yes")
    # The other classes get their bill when they are raised.
    if CLASSES[name].billing_sentence is GetimgError.billing_sentence:
        assert response(name, "Billed").startswith(BILLED[CLASSES[name].billed])


@pytest.mark.parametrize("message", quoted())
def test_quoted_message_exists_in_the_source(message):
    parts = [part.strip(" .,:;()'\"{}[]").lower() for part in SPELT_OUT.sub(HOLE, message).split(HOLE)]
    assert [part for part in parts if part not in texts()] == []


def test_named_error_classes_exist():
    named = set(re.findall(r"`(\w+Error)`", PAGE))
    assert named - {"ValueError"} <= set(CLASSES)


@pytest.mark.parametrize("billed", sorted(BILLED_SENTENCE))
def test_page_quotes_each_billing_sentence(billed):
    assert BILLED_SENTENCE[billed] in PAGE


def test_error_tree_in_the_reference_matches_the_class_hierarchy():
    """``docs/reference/errors.md`` lists the classes that a user may catch."""
    tree = re.search(r"```text\n(GetimgError\n.+?)```", REFERENCE, re.DOTALL)
    assert tree
    parents: dict[int, str] = {}
    shown = {}
    for indent, name in re.findall(r"^( *)(\w+)", tree[1], re.MULTILINE):
        parents[len(indent)] = name
        shown[name] = parents.get(len(indent) - 4)
    assert shown == {name: CLASSES[name].__bases__[0].__name__ if shown[name] else None for name in shown}
    missing = {name for name, kind in CLASSES.items() if kind.__module__.endswith("api.errors")} - set(shown)
    assert missing == set()
