# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import runpy
from pathlib import Path

import pytest

STYLE = runpy.run_path(str(Path(__file__).parents[2] / "style.py"))


@pytest.mark.parametrize(
    "text",
    [
        "It lies there already.",
        "As the log has told, all is well.",
        "Nobody knows.",
        "To make it\nanew, clear the task.",
        "Five failures in a row end it.",
        "Nothing was asked for.",
        "What is paid is kept.",
        "What is in doubt is kept.",
        "This is left to the user.",
        "It is mended.",
        "size is 'big': 1 to 3 is allowed.",
        "The same, byte\n  for byte.",
        "Longer than there is patience for.",
    ],
    ids=STYLE["RULES"],
)
def test_each_rule_finds_its_words(text):
    assert len(list(STYLE["findings"](text))) == 1


def test_other_words_are_left_alone():
    text = "Replies of a layer, recommended and allowed: whoever asks for a retry tells Airflow so."
    assert list(STYLE["findings"](text)) == []


def test_a_module_s_docstrings_and_messages_are_looked_at_and_its_names_are_not(tmp_path):
    module = tmp_path / "module.py"
    module.write_text('"""A docstring.\n\nIt lies."""\nlies = {"lies": f"{1} has\\n told {2}"}\n# Lies!\n')
    found = [
        (first + line, words)
        for first, text in STYLE["texts"](module)
        for line, words, _ in STYLE["findings"](text)
    ]
    assert found == [(3, "lies"), (5, "told")]
