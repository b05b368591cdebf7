# SPDX-License-Identifier: Apache-2.0
"""Rules that the package's operators, hooks and links must follow."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, BaseOperatorLink

import airflow_provider_getimg
from airflow_provider_getimg.version_compat import HAS_RETRY_POLICY, RetryPolicy

PACKAGE = airflow_provider_getimg.__name__
FOLDER = Path(airflow_provider_getimg.__file__).parent
CLIENTS = f"{PACKAGE}.api.client"
FILES = sorted(FOLDER.rglob("*.py"))
# Packages that define public subclasses of Airflow's classes.
ROOMS = ("decorators", "hooks", "links", "operators", "plugin", "retry", "sensors", "transfers", "triggers")
HEAVY = (
    "PIL",
    "airflow.providers.amazon",
    "boto3",
    "botocore",
    "fastapi",
    "httpx",
    "pydantic",
    f"{PACKAGE}.simulator",
    f"{PACKAGE}.testing",
)
# Everything that a DAG file may import from Airflow before it imports this package.
_NAMES = (
    f"DAG, BaseHook, BaseOperator, BaseOperatorLink, XComArg{', RetryPolicy' if HAS_RETRY_POLICY else ''}"
)
BASELINE = f"from airflow.sdk import {_NAMES}"


def ours() -> list[type]:
    """Return the public classes that users instantiate: subclasses of Airflow's, and the API's clients."""
    airflow_s = (BaseOperator, BaseHook, BaseOperatorLink, RetryPolicy)
    names = [entry.name for entry in pkgutil.walk_packages([str(FOLDER)], f"{PACKAGE}.")]
    return [
        value
        for name in names
        if name.split(".")[1] in ROOMS or name == CLIENTS
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value)
        and (issubclass(value, airflow_s) or name == CLIENTS)
        and value.__module__ == name
        and not value.__name__.startswith("_")
    ]


CLASSES = ours()
OPERATORS = [found for found in CLASSES if issubclass(found, BaseOperator)]


def name_of(value: type) -> str:
    return value.__name__


def defined_in(value: type) -> ast.ClassDef:
    """Return the syntax tree of a class."""
    tree = ast.parse(Path(inspect.getfile(value)).read_text())
    [found] = [
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == value.__name__
    ]
    return found


def init_of(value: type) -> ast.FunctionDef | None:
    body = defined_in(value).body
    return next(
        (node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None
    )


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = function.args
    found = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in found if argument.arg not in ("self", "cls")]


def documented(docstring: str | None) -> set[str]:
    return set(re.findall(r"^\s*:param (\w+):", docstring or "", re.MULTILINE))


def only_assigns(statement: ast.stmt) -> bool:
    """Return whether it is a docstring, ``super().__init__(...)`` with names, or ``self.x = ...`` without a call."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return True
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value
        values = [*call.args, *(keyword.value for keyword in call.keywords)]
        return ast.unparse(call.func) == "super().__init__" and all(
            isinstance(value, ast.Name) for value in values
        )
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return False
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    decides = (ast.Call, ast.IfExp, ast.BoolOp, ast.BinOp, ast.Subscript, ast.comprehension)
    return (
        all(ast.unparse(target).startswith("self.") for target in targets)
        and statement.value is not None
        and not any(isinstance(node, decides) for node in ast.walk(statement.value))
    )


def test_operators_are_found():
    assert {"GenerateImageOperator", "TransferToS3Operator"} <= {name_of(found) for found in OPERATORS}


@pytest.mark.parametrize("module", sorted({found.__module__ for found in OPERATORS}))
def test_operator_module_imports_nothing_heavy_beyond_what_airflow_imports(module):
    code = f"""
import json, sys
{BASELINE}
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    new = json.loads(said.splitlines()[-1])
    assert module in new
    assert [name for name in new for heavy in HEAVY if name == heavy or name.startswith(f"{heavy}.")] == []


@pytest.mark.parametrize("operator", OPERATORS, ids=name_of)
def test_operator_init_only_assigns_attributes(operator):
    init = init_of(operator)
    if init is None:
        return
    assert [ast.unparse(statement) for statement in init.body if not only_assigns(statement)] == []


@pytest.mark.parametrize("operator", OPERATORS, ids=name_of)
def test_template_fields_are_parameters_and_include_every_connection_id(operator):
    taken = inspect.signature(operator).parameters
    assert set(operator.template_fields) <= set(taken)
    assert {name for name in taken if name.endswith("conn_id")} <= set(operator.template_fields)


@pytest.mark.parametrize("operator", OPERATORS, ids=name_of)
def test_operator_docstring_marks_exactly_the_templated_parameters(operator):
    text = inspect.cleandoc(operator.__doc__ or "")
    parts = re.split(r"^:param (\w+):", text, flags=re.MULTILINE)
    said = {
        name
        for name, what in zip(parts[1::2], parts[2::2], strict=True)
        if what.rstrip().endswith("(templated)")
    }
    own = set(parameters(init_of(operator))) if init_of(operator) else set()
    assert said == set(operator.template_fields) & own


@pytest.mark.parametrize("value", CLASSES, ids=name_of)
def test_class_that_users_instantiate_documents_each_parameter(value):
    init = init_of(value)
    described = documented(value.__doc__) | (documented(ast.get_docstring(init)) if init else set())
    assert value.__doc__
    if init is not None:
        assert described == set(parameters(init))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_every_public_class_has_a_docstring(path):
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    public = [node for node in classes if not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_every_documented_parameter_exists(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    # A class may document its base classes' fields, too.
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    made_up = [
        f"{node.name}: {name}"
        for node in nodes
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for name in documented(ast.get_docstring(node)) - accepted(node)
        if not any(name in accepted(classes[base]) for base in bases(node) if base in classes)
    ]
    assert made_up == []


def bases(node: ast.AST) -> list[str]:
    """Return the names of a class's base classes."""
    found = node.bases if isinstance(node, ast.ClassDef) else []
    return [base.id for base in found if isinstance(base, ast.Name)]


def accepted(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the parameters of a function, of a class's ``__init__``, or of the one generated for a dataclass."""
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                return accepted(part)
        fields = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
        return {field.id for field in fields if isinstance(field, ast.Name)}
    variadic = [argument.arg for argument in (node.args.vararg, node.args.kwarg) if argument is not None]
    return {*parameters(node), *variadic}
