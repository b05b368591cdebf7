# SPDX-License-Identifier: Apache-2.0
"""Who imports whom, and what a DAG file pays for an import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "airflow_provider_getimg"
NAME = PACKAGE.name

# What each room may import of the others. A room is the first part of a module's name.
ALLOWED = {
    "api": {"api"},
    "simulator": {"simulator"},
    "testing": {"testing", "simulator"},
    "get_provider_info": set(),
    "masking": {"api"},
    "links": set(),
    "ledger": {"api"},
    "journal": {"ledger", "api"},
    "retry": {"api"},
    "parameters": {"api"},
    "hooks": {"hooks", "api"},
    "operators": {
        "operators",
        "transfers",
        "hooks",
        "ledger",
        "journal",
        "retry",
        "parameters",
        "masking",
        "links",
        "api",
    },
    "transfers": {"transfers", "hooks", "retry", "parameters", "masking", "links", "api"},
    "__init__": set(),
}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it and for whatever reason."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_one_way(module):
    own = module.parts[0].removesuffix(".py")
    others = {room(name) for name in imported(PACKAGE / module) if name.startswith(f"{NAME}.")}
    assert others <= ALLOWED[own]


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] in ("api", "simulator")], ids=str)
def test_the_api_and_the_simulator_know_no_airflow(module):
    assert not {name for name in imported(PACKAGE / module) if name.split(".")[0] == "airflow"}


def test_provider_info_imports_nothing():
    assert imported(PACKAGE / "get_provider_info.py") <= {
        "__future__",
        "__future__.annotations",
        "typing",
        "typing.Any",
    }


def test_parsing_a_dag_imports_nothing_heavy_that_airflow_has_not_imported():
    code = f"""
import json, sys
from airflow.sdk import DAG, BaseHook, BaseOperator, BaseOperatorLink, RetryPolicy, XComArg
before = set(sys.modules)
import {NAME}.operators.image, {NAME}.transfers.getimg_to_s3
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    new = json.loads(output.splitlines()[-1])
    heavy = ("boto", "pydantic", "httpx", "fastapi", "PIL", "airflow.providers.amazon", f"{NAME}.simulator")
    assert f"{NAME}.operators.image" in new
    assert [name for name in new if name.startswith(heavy)] == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_each_file_names_its_licence(module):
    assert (PACKAGE / module).read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
