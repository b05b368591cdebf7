# SPDX-License-Identifier: Apache-2.0
"""
Finds words that a reader stumbles over, in the docs, the templates, the files that set things up, and the docstrings,
strings, comments and test names of the code, for ``make lint``.

Not ``vale``, which does the same for Markdown: its package on PyPI has no binary, but downloads one when it is run.
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[1]
# A pattern, in which a space is any white space, and what to write instead.
RULES = {
    r"(lies?|lay|lying|lain)": "is, is stored, already exists",
    r"(told|(tell|tells|telling) of)": "says, reports, lists, shows",
    r"nobody": "no one, or say who",
    r"anew": "again; regenerate",
    r"in a row": "consecutive",
    r"(is|are|was|were|be|been|being|not|nothing|images?) asked for": "sent, requested",
    r"what (is|was|has been|is already) paid( for)?": "paid images",
    r"doubt\w*": "unknown outcome",
    r"(leave|leaves|left) to": "let … decide, permission to",
    r"mend(s|ed|ing)?": "fix, repair",
    r"(is|are) allowed": "X must be Y, got V",
    r"byte for byte": "identical content",
    r"patience": "max_wait, the maximum wait",
    r"so (many|much|often|long)(?! (as|that)\b)": "the number, or what it depends on",
    r"(does|did|do)(n't| not) tell(?! [^.]*(from|apart))": "say, show",
    r"tells?(?=[.,;:)]| why)": "says, shows",
}


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the words and the better ones, of each rule that a text breaks."""
    for pattern, better in RULES.items():
        for found in re.finditer(rf"\b{pattern}\b".replace(" ", r"\s+"), text, re.IGNORECASE):
            yield text.count("\n", 0, found.start()), " ".join(found[0].split()), better


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a file with their lines: the whole file, or the strings and comments of a module."""
    if path.suffix != ".py":
        yield 1, path.read_text()
        return
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
        # Of an f-string, what is between its fields; a word alone is a name.
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def main() -> int:
    """Print what breaks a rule."""
    pages = [*REPOSITORY.glob("*.md"), *sorted((REPOSITORY / "docs").rglob("*.md"))]
    pages += sorted((REPOSITORY / "airflow_provider_getimg" / "plugin").rglob("*.html"))
    pages += [REPOSITORY / name for name in ("Makefile", "Dockerfile", "docker-compose.yaml", ".env.example")]
    broken = 0
    modules = [REPOSITORY / "noxfile.py"]
    for name in ("airflow_provider_getimg", "dags", "tests", "devstack", "benchmarks", "docs"):
        modules += sorted((REPOSITORY / name).rglob("*.py"))
    # The rules themselves.
    modules.remove(Path(__file__).resolve())
    for path in [*pages, *modules]:
        for first, text in texts(path):
            for line, words, better in findings(text):
                print(f"{path.relative_to(REPOSITORY)}:{first + line}: {words!r}: {better}")
                broken += 1
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
