# SPDX-License-Identifier: Apache-2.0
"""The handbook's list of public names is complete, and each listed name exists."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "airflow_provider_getimg"
PAGE = (REPOSITORY / "docs" / "reference" / "public.md").read_text()
ROWS = re.findall(r"^- `([\w.]+)`: ((?:`\w+`,?\s+)+)", PAGE, re.MULTILINE)
LISTED = {f"airflow_provider_getimg.{module}": re.findall(r"`(\w+)`", names) for module, names in ROWS}

# Subpackages that DAGs import from: their modules are public. Only operators start triggers.
KINDS = ("decorators", "hooks", "operators", "sensors", "transfers")
# Used only by the package itself.
INTERNAL_MODULES = {
    "airflow_provider_getimg.decorators.task",
    "airflow_provider_getimg.hooks.hook_mixin",
    "airflow_provider_getimg.hooks.masking",
    "airflow_provider_getimg.hooks.state_folder",
    "airflow_provider_getimg.operators.one_generation",
}
INTERNAL = {
    "airflow_provider_getimg.api.requests": {"video_path"},
    "airflow_provider_getimg.api.settings": {
        "checked_api_key",
        "checked_base_url",
        "checked_networks",
        "checked_timeout",
        "http_client",
        "is_loopback",
        "mask_urls_in_logs",
    },
    "airflow_provider_getimg.links": {"console_url"},
    "airflow_provider_getimg.retry": {"backoff", "slot_probe_delay", "wait_out_rate_limits"},
}


def exported(module: str) -> set[str]:
    """Return the names in a module's ``__all__``, or its classes and functions without an underscore."""
    loaded = import_module(module)
    if hasattr(loaded, "__all__"):
        return set(loaded.__all__)
    return {
        name
        for name, member in vars(loaded).items()
        if (inspect.isclass(member) or inspect.isfunction(member))
        and member.__module__ == module
        and not name.startswith("_")
    }


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in LISTED for name in LISTED[module]])
def test_listed_name_can_be_imported(module, name):
    assert hasattr(import_module(module), name)


@pytest.mark.parametrize("module", LISTED)
def test_every_export_of_a_public_module_is_listed(module):
    assert exported(module) - INTERNAL.get(module, set()) <= set(LISTED[module])


def test_every_module_that_dags_import_from_is_listed():
    folders = [str(PACKAGE / kind) for kind in KINDS]
    found = {
        f"airflow_provider_getimg.{Path(module.module_finder.path).name}.{module.name}"
        for module in iter_modules(folders)
    }
    assert found - INTERNAL_MODULES <= set(LISTED)


@pytest.mark.parametrize("module", ["airflow_provider_getimg.api", "airflow_provider_getimg.simulator"])
def test_package_exports_only_listed_names(module):
    assert exported(module) <= set(LISTED.get(module, ()))


def test_names_marked_internal_exist():
    for module, names in INTERNAL.items():
        assert names <= exported(module)
