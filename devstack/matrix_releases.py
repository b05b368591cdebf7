# SPDX-License-Identifier: Apache-2.0
"""The sets of versions in the matrix."""

from __future__ import annotations

from dataclasses import dataclass

# What Airflow 3.3.0, out on 6 July 2026, was installed with in its first days.
FIRST_SHIPPED_WITH = "2026-07-08T00:00:00Z"


@dataclass(frozen=True)
class Release:
    """
    A set of versions to test.

    :param name: As ``--only`` takes it.
    :param meaning: One sentence for the documentation.
    :param options: What `uv pip compile` is told beside the project's own bounds.
    :param constraints: Further bounds.
    """

    name: str
    meaning: str
    options: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()


RELEASES = {
    release.name: release
    for release in (
        Release(
            "3.3.0",
            f"Airflow 3.3.0 with what was newest on {FIRST_SHIPPED_WITH.partition('T')[0]}, two days after its release.",
            ("--exclude-newer", FIRST_SHIPPED_WITH),
            ("apache-airflow==3.3.0",),
        ),
        Release(
            "newest",
            "The newest Airflow 3.3.x, and the newest of all else.",
            (),
            ("apache-airflow>=3.3,<3.4",),
        ),
        Release(
            "lowest",
            "The lowest versions that `pyproject.toml` allows (and the newest of what those depend on).",
            ("--resolution", "lowest-direct"),
        ),
    )
}
