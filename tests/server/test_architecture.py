# SPDX-License-Identifier: Apache-2.0
"""What an import costs Airflow and a DAG file. The rules for imports are in pyproject.toml, for `lint-imports`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "airflow_provider_getimg"
NAME = PACKAGE.name

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def test_provider_info_imports_only_typing():
    statements = ast.walk(ast.parse((PACKAGE / "get_provider_info.py").read_text()))
    imports = [ast.unparse(node) for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
    assert set(imports) <= {"from __future__ import annotations", "from typing import Any"}


def test_parsing_a_dag_imports_nothing_heavy_beyond_what_airflow_imports():
    code = f"""
import json, sys
from airflow.sdk import DAG, BaseHook, BaseOperator, BaseOperatorLink, BaseSensorOperator, RetryPolicy, XComArg
before = set(sys.modules)
import {NAME}.decorators.image, {NAME}.decorators.image_batch, {NAME}.manifests, {NAME}.plugin, {NAME}.review, {NAME}.sensors.balance, {NAME}.transfers.getimg_to_s3
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    new = json.loads(output.splitlines()[-1])
    heavy = ("boto", "pydantic", "httpx", "fastapi", "PIL", "airflow.providers.amazon", f"{NAME}.simulator")
    assert f"{NAME}.operators.image" in new
    assert [name for name in new if name.startswith(heavy)] == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_each_file_names_its_license(module):
    assert (PACKAGE / module).read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
