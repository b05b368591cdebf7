# SPDX-License-Identifier: Apache-2.0
"""The wheel and the sdist as users get them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

from airflow_provider_getimg import __version__
from airflow_provider_getimg.get_provider_info import get_provider_info

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "airflow_provider_getimg"
INFO = f"{PACKAGE}-{__version__}.dist-info"


def build(target: Path, *options: str) -> Path:
    """Build with the project's own backend, and return the output folder."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), *options]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    return target


def wheel_in(folder: Path) -> zipfile.ZipFile:
    [path] = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    return wheel_in(build(tmp_path_factory.mktemp("wheel"), "--wheel"))


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """An sdist, and the wheel that was built from it."""
    return build(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def metadata(wheel) -> Metadata:
    # Validated as a package index does: an unknown field or an invalid value raises.
    return Metadata.from_email(wheel.read(f"{INFO}/METADATA"), validate=True)


def test_wheel_contains_the_package_and_nothing_else(wheel):
    source = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert f"{PACKAGE}/py.typed" in source
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert set(wheel.namelist()) == source | {f"{INFO}/{name}" for name in about}


def test_wheel_built_from_the_sdist_has_the_same_content(wheel, release):
    other = wheel_in(release)
    assert {name: wheel.read(name) for name in wheel.namelist()} == {
        name: other.read(name) for name in other.namelist()
    }


def test_sdist_has_the_license_the_changelog_and_the_example_dags(release):
    [sdist] = release.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    examples = {f"dags/{path.name}" for path in (REPOSITORY / "dags").glob("*.py")}
    assert {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", *examples} <= names


def test_wheel_is_pure_python_for_every_platform(wheel):
    assert "Root-Is-Purelib: true" in wheel.read(f"{INFO}/WHEEL").decode()
    assert "Tag: py3-none-any" in wheel.read(f"{INFO}/WHEEL").decode()


def test_wheel_requires_only_its_runtime_dependencies_and_has_a_simulator_extra(metadata):
    needed = [Requirement(str(line)) for line in metadata.requires_dist or []]
    assert {line.name for line in needed if line.marker is None} == {
        "apache-airflow",
        "apache-airflow-providers-amazon",
        "apache-airflow-providers-common-compat",
        "httpx",
        "pydantic",
    }
    assert str(metadata.requires_python) == ">=3.11"
    assert "simulator" in (metadata.provides_extra or [])


def test_every_requirement_has_a_lower_bound_and_no_upper_bound(metadata):
    # A library's upper bound could conflict with Airflow's own constraints.
    for line in metadata.requires_dist or []:
        requirement = Requirement(str(line))
        if requirement.name != metadata.name:
            assert [bound.operator for bound in requirement.specifier] == [">="], requirement


def test_wheel_metadata_matches_the_provider_info_and_the_readme(metadata):
    assert metadata.name == get_provider_info()["package-name"]
    assert str(metadata.version) == __version__
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description_content_type == "text/markdown"
    assert (metadata.description or "").rstrip() == (REPOSITORY / "README.md").read_text().rstrip()
