# SPDX-License-Identifier: Apache-2.0
"""The provider as Airflow sees it, and the wheel as users get it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import jsonschema
import pytest

from airflow_provider_getimg import __version__
from airflow_provider_getimg.get_provider_info import get_provider_info
from airflow_provider_getimg.hooks.getimg import GetimgHook

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "airflow_provider_getimg"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Build the wheel with the project's own backend."""
    target = tmp_path_factory.mktemp("wheel")
    code = f"from flit_core import buildapi; print(buildapi.build_wheel({str(target)!r}))"
    name = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()
    return zipfile.ZipFile(target / name)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = wheel.namelist()
    info = f"{PACKAGE}-{__version__}.dist-info/"
    assert {name.split("/")[0] + "/" for name in names} == {f"{PACKAGE}/", info}
    assert f"{PACKAGE}/py.typed" in names
    source = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if not name.startswith(info)} == source
    assert f"{info}entry_points.txt" in names


def test_the_wheel_asks_for_what_it_needs_and_extras_for_the_rest(wheel):
    metadata = wheel.read(f"{PACKAGE}-{__version__}.dist-info/METADATA").decode()
    required = [
        line.removeprefix("Requires-Dist: ")
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist")
    ]
    runtime = sorted(line.split(">")[0] for line in required if "extra ==" not in line)
    assert runtime == [
        "apache-airflow",
        "apache-airflow-providers-amazon",
        "apache-airflow-providers-common-compat",
        "httpx",
        "pydantic",
    ]
    assert "Requires-Python: >=3.11" in metadata
    assert "Provides-Extra: simulator" in metadata


def test_airflow_finds_the_provider_by_its_entry_point():
    [entry] = [
        entry for entry in entry_points(group="apache_airflow_provider") if entry.value.startswith(PACKAGE)
    ]
    assert entry.load()()["package-name"] == "airflow-provider-getimg"


def test_the_provider_info_is_what_airflow_s_schema_asks_for():
    import airflow

    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_the_declared_form_is_the_hook_s():
    [form] = get_provider_info()["connection-types"]
    assert form["connection-type"] == GetimgHook.conn_type
    assert form["hook-name"] == GetimgHook.hook_name
    assert form["hook-class-name"] == f"{GetimgHook.__module__}.{GetimgHook.__name__}"
    assert GetimgHook.default_conn_name == "getimg_default"
    assert set(form["conn-fields"]) == {"timeout", "proxy"}


def test_all_that_is_declared_can_be_imported():
    info = get_provider_info()
    modules = [name for entry in info["hooks"] + info["operators"] for name in entry["python-modules"]]
    modules += [entry["python-module"] for entry in info["transfers"]]
    classes = [entry["hook-class-name"] for entry in info["connection-types"]] + info["extra-links"]
    for module in modules:
        importlib.import_module(module)
    for name in classes:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["list"], "airflow-provider-getimg"),
        (["get", "airflow-provider-getimg"], "airflow-provider-getimg"),
        (["hooks"], f"{PACKAGE}.hooks.getimg.GetimgHook"),
        (["links"], f"{PACKAGE}.links.OpenInS3Link"),
    ],
    ids=["list", "get", "hooks", "links"],
)
def test_airflow_s_own_commands_show_it(command, expected):
    shown = subprocess.run(
        [sys.executable, "-m", "airflow", "providers", *command, "--output", "json"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert expected in shown
