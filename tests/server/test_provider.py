# SPDX-License-Identifier: Apache-2.0
"""The provider as Airflow sees it: its declarations are complete, and valid for Airflow."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, BaseSensorOperator
from airflow.triggers.base import BaseTrigger

import airflow_provider_getimg
from airflow_provider_getimg.get_provider_info import get_provider_info
from airflow_provider_getimg.hooks.getimg import EXTRA_NAMES, GetimgHook
from airflow_provider_getimg.version_compat import AIRFLOW_VERSION, READS_CONN_FIELDS

if TYPE_CHECKING:
    from types import ModuleType

PACKAGE = airflow_provider_getimg.__name__
INFO = get_provider_info()
# The package that holds each kind of class.
ROOMS = {
    "hooks": BaseHook,
    "operators": BaseOperator,
    "sensors": BaseSensorOperator,
    "transfers": BaseOperator,
    "triggers": BaseTrigger,
}
# A connection's standard fields in Airflow's form.
STANDARD_FIELDS = ["host", "schema", "login", "password", "port", "extra"]

# The rules for `connection-types` in `provider.yaml.schema.json` of Airflow's repository, which no package
# contains (the schema inside Airflow accepts anything), as far as they affect Airflow's form. Stricter in one
# respect: a name that the form would ignore, such as `hidden_fields`, is invalid.
JSON_TYPES = {"enum": ["string", "number", "integer", "boolean", "object", "array", "null"]}
TEXTS = {"type": "object", "additionalProperties": {"type": "string", "minLength": 1}}
CONNECTION_TYPE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["connection-type", "hook-class-name", "hook-name"],
    "properties": {
        "connection-type": {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"},
        "hook-class-name": {"type": "string", "pattern": r"^\w+(\.\w+)+$"},
        "hook-name": {"type": "string", "minLength": 1},
        "ui-field-behaviour": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "hidden-fields": {
                    "type": "array",
                    "uniqueItems": True,
                    "items": {"enum": [*STANDARD_FIELDS, "description"]},
                },
                "relabeling": {**TEXTS, "propertyNames": {"enum": [*STANDARD_FIELDS, "description"]}},
                "placeholders": TEXTS,
            },
        },
        "conn-fields": {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z][a-z0-9_]*$", "not": {"enum": STANDARD_FIELDS}},
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["label", "schema"],
                "properties": {
                    "label": {"type": "string", "minLength": 1},
                    "description": {"type": "string", "minLength": 1},
                    "schema": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["type"],
                        "properties": {
                            "type": {
                                "anyOf": [
                                    JSON_TYPES,
                                    {
                                        "type": "array",
                                        "items": JSON_TYPES,
                                        "minItems": 1,
                                        "uniqueItems": True,
                                    },
                                ]
                            },
                            "default": {},
                            "enum": {"type": "array", "minItems": 1},
                            "format": {
                                "enum": ["password", "multiline", "email", "date", "date-time", "time"]
                            },
                            "minimum": {"type": "number"},
                            "maximum": {"type": "number"},
                            "minLength": {"type": "integer"},
                            "maxLength": {"type": "integer"},
                            "pattern": {"type": "string"},
                        },
                    },
                },
            },
        },
    },
}


def modules_in(room: str) -> list[ModuleType]:
    package = importlib.import_module(f"{PACKAGE}.{room}")
    names = [entry.name for entry in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [importlib.import_module(name) for name in names]


def classes_in(room: str, base: type) -> list[type]:
    """Return the public subclasses that a package's modules define themselves."""
    return [
        found
        for module in modules_in(room)
        for name, found in vars(module).items()
        if inspect.isclass(found)
        and issubclass(found, base)
        and found.__module__ == module.__name__
        and not name.startswith("_")
    ]


def declared(kind: str) -> set[str]:
    """Return the modules of this kind that the provider declares."""
    return {
        module
        for entry in INFO.get(kind, [])
        for module in [*entry.get("python-modules", []), *filter(None, [entry.get("python-module")])]
    }


def test_airflow_finds_the_provider_by_its_entry_point():
    [entry] = distribution("airflow-provider-getimg").entry_points.select(group="apache_airflow_provider")
    assert entry.load() is get_provider_info
    assert INFO["package-name"] == "airflow-provider-getimg"


def test_every_entry_point_can_be_loaded():
    for entry in distribution("airflow-provider-getimg").entry_points:
        assert entry.value.startswith(f"{PACKAGE}.")
        entry.load()


def test_provider_info_matches_the_airflow_schema():
    import airflow

    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(INFO, schema)


@pytest.mark.parametrize("form", INFO["connection-types"], ids=lambda form: form["connection-type"])
class TestConnectionType:
    def test_follows_the_schema(self, form):
        jsonschema.validate(form, CONNECTION_TYPE)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda form: form["ui-field-behaviour"].update(hidden_fields=["port"]),
            lambda form: form["ui-field-behaviour"].update({"hidden-fields": ["Port"]}),
            lambda form: form["ui-field-behaviour"].update(relabeling={"key": "API key"}),
            lambda form: form["conn-fields"].update(login={"label": "Login", "schema": {"type": "string"}}),
            lambda form: form["conn-fields"].update(region={"label": "Region", "schema": {"type": "text"}}),
            lambda form: form["conn-fields"].update(region={"schema": {"type": "string"}}),
            lambda form: form["conn-fields"].update(region={"label": "Region"}),
        ],
        ids=["underscore", "capital", "no such field", "taken name", "no such type", "no label", "no schema"],
    )
    def test_invalid_declaration_is_rejected_by_the_schema(self, form, spoil):
        spoilt = json.loads(json.dumps(form))
        spoil(spoilt)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, CONNECTION_TYPE)

    def test_labels_and_placeholders_name_only_known_fields_that_are_not_hidden(self, form):
        behaviour = form["ui-field-behaviour"]
        named = {*behaviour["relabeling"], *behaviour["placeholders"]}
        assert named.isdisjoint(behaviour["hidden-fields"])
        assert named <= {*STANDARD_FIELDS, *form["conn-fields"]}

    def test_matches_its_hook_class(self, form):
        module, _, name = form["hook-class-name"].rpartition(".")
        hook = getattr(importlib.import_module(module), name)
        assert issubclass(hook, BaseHook)
        assert (hook.conn_type, hook.hook_name) == (form["connection-type"], form["hook-name"])
        assert hook.default_conn_name == f"{form['connection-type']}_default"
        # `conn_name_attr` must name a parameter of the hook's __init__.
        parameter = inspect.signature(hook).parameters[hook.conn_name_attr]
        assert parameter.default == hook.default_conn_name
        # One source for the form: Airflow versions that read the declaration would prefer these methods.
        is_declared_twice = bool(
            {"get_connection_form_widgets", "get_ui_field_behaviour"} & vars(hook).keys()
        )
        assert is_declared_twice is not READS_CONN_FIELDS


@pytest.mark.skipif(READS_CONN_FIELDS, reason="Airflow 3.2 and later read the declaration")
def test_form_before_airflow_3_2_matches_the_declaration():
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    if AIRFLOW_VERSION == "3.1.2":
        pytest.skip("all forms of Airflow 3.1.2 need the FAB provider")
    [form] = [one for one in HookMetaService.hook_meta_data() if one.connection_type == "getimg"]
    [declared] = INFO["connection-types"]
    assert form.extra_fields.keys() == declared["conn-fields"].keys()
    for name, field in form.extra_fields.items():
        assert field["schema"]["title"] == declared["conn-fields"][name]["label"]
        assert field["description"] == declared["conn-fields"][name]["description"]
    assert form.standard_fields.password.title == "API key"
    assert form.standard_fields.login.hidden


def test_form_fields_are_those_that_the_hook_reads():
    [form] = INFO["connection-types"]
    assert form["connection-type"] == GetimgHook.conn_type
    assert set(form["conn-fields"]) == set(EXTRA_NAMES)


def test_every_declared_module_and_link_can_be_imported():
    for module in set[str]().union(*map(declared, ROOMS)):
        importlib.import_module(module)
    for name in INFO["extra-links"]:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(("room", "base"), ROOMS.items())
def test_modules_with_public_classes_are_exactly_the_declared_ones(room, base):
    defined = {found.__module__ for found in classes_in(room, base)}
    assert defined
    assert defined == declared(room)


def test_operator_links_are_exactly_the_declared_ones():
    operators = classes_in("operators", BaseOperator) + classes_in("transfers", BaseOperator)
    links = {
        f"{type(link).__module__}.{type(link).__name__}"
        for operator in operators
        for link in operator.operator_extra_links
    }
    assert links == set(INFO["extra-links"])


def test_every_integration_in_use_is_described():
    described = {entry["integration-name"] for entry in INFO["integrations"]}
    named = {
        entry["integration-name"]
        for kind in ("hooks", "operators", "sensors", "triggers")
        for entry in INFO[kind]
    }
    assert named == described
    assert {entry["source-integration-name"] for entry in INFO["transfers"]} <= described


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["list"], "airflow-provider-getimg"),
        (["get", "airflow-provider-getimg"], "airflow-provider-getimg"),
        (["hooks"], f"{PACKAGE}.hooks.getimg.GetimgHook"),
        (["links"], f"{PACKAGE}.links.OpenInS3Link"),
        (["triggers"], f"{PACKAGE}.triggers.balance"),
    ],
    ids=["list", "get", "hooks", "links", "triggers"],
)
def test_airflow_providers_commands_show_the_provider(command, expected):
    shown = subprocess.run(
        [sys.executable, "-m", "airflow", "providers", *command, "--output", "json"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert expected in shown
