# SPDX-License-Identifier: Apache-2.0
"""``py.typed`` works: mypy checks a user's DAG against the types of the installed package."""

from __future__ import annotations

import subprocess
import sys

import pytest

RIGHT = """\
from airflow.sdk import DAG

from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

with DAG("postcard", schedule=None):
    image = GenerateImageOperator(task_id="generate", model="seedream-5-lite", prompt="A harbour", max_cost="0.05")
    TransferToS3Operator(task_id="save", generation=image.output, s3_key="s3://bucket/{index}.{extension}")


def spent(hook: GetimgHook) -> int:
    return len(hook.client.list_models())
"""
WRONG = {
    "a parameter's type": ('model="seedream-5-lite"', "model=5", "[arg-type]"),
    "a parameter that is missing": ('model="seedream-5-lite", ', "", "[call-arg]"),
    "what the hook returns": ("list_models()", "list_pictures()", "[attr-defined]"),
}


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """Return a function that checks a user's DAG without this repository's settings; a cache speeds up later checks."""
    folder = tmp_path_factory.mktemp("user")
    # Airflow's own types are not under test, and would take most of mypy's time.
    (folder / "mypy.ini").write_text("[mypy]\nstrict = True\n[mypy-airflow.*]\nfollow_imports = skip\n")

    def check(code: str) -> tuple[int, str]:
        (folder / "dag.py").write_text(code)
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "dag.py"], cwd=folder, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return check


def test_correct_dag_passes_the_type_check(mypy):
    code, said = mypy(RIGHT)
    assert (code, said) == (0, "Success: no issues found in 1 source file\n")


@pytest.mark.long
@pytest.mark.parametrize(("right", "wrong", "error"), WRONG.values(), ids=WRONG)
def test_dag_with_a_type_error_fails_the_type_check(mypy, right, wrong, error):
    assert right in RIGHT
    code, said = mypy(RIGHT.replace(right, wrong))
    assert code == 1, said
    assert error in said
    assert "dag.py:" in said
