# SPDX-License-Identifier: Apache-2.0
"""Runs, parses and resolves the code, data and links of the README and the handbook."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from pymdownx.slugs import slugify

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
HANDBOOK = sorted(DOCS.rglob("*.md"))
PAGES = [*sorted(REPOSITORY.glob("*.md")), *HANDBOOK]
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
SCRIPTS = Path(sysconfig.get_path("scripts"))
# Readers have these, but the machine that runs the tests may not.
PROGRAMS_OF_OTHERS = {"docker", "curl", "git"}
# Part of the shell itself.
BUILTINS = {"export", "cd"}
LANGUAGES = {"python", "json", "yaml", "toml", "ini", "bash", "console", "text"}

anchor_of = slugify(case="lower")


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).with_suffix("").as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block.

    :param title: The file's name, if the block is a whole file.
    """

    page: Path
    number: int
    language: str
    title: str
    code: str


def fences(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, including those indented in a list."""
    pattern = r'^( *)```(\w*)(?: title="([^"]+)")?\n(.*?)^\1```$'
    found = re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)
    return [
        Block(page, number, language, title, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE))
        for number, (indent, language, title, code) in enumerate(found)
    ]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(*languages: str, having: str = "") -> list:
    return [
        pytest.param(block, id=f"{name_of(page)}-{block.number}")
        for page in PAGES
        for block in fences(page)
        if block.language in languages and having in block.code
    ]


def commands(code: str) -> list[list[str]]:
    """Return the commands of a block, each as words; of a console block, those after a ``$``."""
    lines = code.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    words = [shlex.split(line, comments=True) for line in lines]
    # Assignments before a command set its environment.
    return [
        command
        for line in words
        if (command := [word for n, word in enumerate(line) if not _is_assignment(line, n)])
    ]


def _is_assignment(words: list[str], position: int) -> bool:
    return all(re.match(r"[A-Z_]+=", word) for word in words[: position + 1])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_code_block_has_a_tested_language(page):
    assert {block.language for block in fences(page)} <= LANGUAGES
    # The pattern misses no fence.
    assert page.read_text().count("```") == 2 * len(fences(page))


@pytest.mark.parametrize("block", blocks("python"))
def test_python_block_compiles_and_runs_unless_it_is_a_whole_file(block):
    code = compile(block.code, block.title or "a code block", "exec")
    # A whole file may import another file of its page.
    if not block.title:
        exec(code, {"__name__": "docs"})


@pytest.mark.parametrize("block", blocks("python", having="DAG("))
def test_airflow_loads_and_serializes_each_dag(block, tmp_path):
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.serialized_objects import DagSerialization

    (tmp_path / (block.title or "shown.py")).write_text(block.code)
    bag = DagBag(tmp_path, bundle_path=tmp_path)
    assert bag.import_errors == {}
    assert bag.dags
    for dag in bag.dags.values():
        DagSerialization.to_dict(dag)


@pytest.mark.parametrize(
    ("language", "parse"), [("json", json.loads), ("yaml", yaml.safe_load), ("toml", tomllib.loads)]
)
def test_data_blocks_can_be_parsed(language, parse):
    for block in blocks(language):
        parse(block.values[0].code)


@pytest.mark.parametrize("block", blocks("bash", "console"))
def test_each_command_exists(block):
    if re.search(r"^(?:while|for|if) ", block.code, re.MULTILINE):
        # For a script, it is enough that Bash can parse it.
        subprocess.run(["bash", "-n"], input=block.code, text=True, check=True, timeout=30)
        return
    found = commands(block.code)
    assert found
    for program, *arguments in found:
        if program == "make":
            assert set(arguments) <= TARGETS
        elif program not in BUILTINS | PROGRAMS_OF_OTHERS:
            assert (SCRIPTS / program).exists() or shutil.which(program), program
        if program == "airflow":
            check_airflow(arguments)
        if program == "getimg-simulator":
            check_simulator(arguments)


def check_airflow(arguments: list[str]) -> None:
    from airflow.cli.cli_parser import get_parser

    get_parser().parse_args(arguments)


def check_simulator(arguments: list[str]) -> None:
    from airflow_provider_getimg.simulator.__main__ import _parser

    _parser().parse_args(arguments)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_that_a_page_names_exist(page):
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE):
        assert target in TARGETS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_linked_files_and_anchors_exist(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page: of its headings, as GitHub and the handbook generate them, and of documented objects."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        anchor = anchor_of(heading.replace("`", ""), "-")
        found[anchor] = found.get(anchor, 0) + 1
    assert set(found.values()) <= {1}, f"{page.name} has a heading twice"
    return {*found, *re.findall(r"^::: (\S+)$", prose(page), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_folders_and_files_that_a_page_names_exist(page):
    for name in re.findall(r"`((?:dags|docs|devstack|benchmarks|tests)/[\w./-]*)`", prose(page)):
        assert (REPOSITORY / name).exists(), name


def test_images_in_the_docs_are_used_and_small():
    text = "".join(page.read_text() for page in PAGES)
    for picture in sorted((DOCS / "images").iterdir()):
        assert f"images/{picture.name}" in text
        assert picture.stat().st_size < 300_000


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Return the site that ``make docs`` builds, without internet access: a build must load nothing from elsewhere."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    ran = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, **nowhere}, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return folder


def test_handbook_builds_without_warnings_or_leftover_sphinx_markup(site):
    for page in HANDBOOK:
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file()
    # The docstrings use Sphinx markup, which docs/docstrings.py converts.
    reference = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    assert (
        re.findall(r":(?:class|meth|func|attr|param|raises)\b|\.\. code-block|={5,} ={5,}", reference) == []
    )


class Resources(HTMLParser):
    """Collects what a browser loads for a page: all addresses in it except links to other pages."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if tag != "a" and name in {"src", "srcset", "href", "data", "poster", "style"}:
                self.found.append(value or "")
            # The theme loads Mermaid's script from a CDN for these.
            elif name == "class" and "mermaid" in (value or "").split():
                self.found.append("https://unpkg.com/mermaid")


def test_handbook_pages_load_nothing_from_other_hosts(site):
    foreign = r"(?:https?:)?//[\w.-]+"
    for page in site.rglob("*.html"):
        resources = Resources()
        resources.feed(page.read_text())
        assert resources.found
        assert [address for address in resources.found if re.search(foreign, address)] == [], page.name
    for sheet in site.rglob("*.css"):
        assert re.findall(rf"(?:url\(|@import)\s*[\"']?{foreign}", sheet.read_text()) == [], sheet.name


def test_handbook_has_the_scripts_that_search_it_from_the_disk(site):
    """Browsers run no worker for a page that is opened from the disk: a polyfill takes its place."""
    assert (site / "search" / "search_index.js").is_file()
    assert '<script src="assets/iframe-worker.js">' in (site / "index.html").read_text()
