# SPDX-License-Identifier: Apache-2.0
"""The metadata database that ``dag.test()`` needs: created for the tests, or the user's own, never migrated here."""

from __future__ import annotations

import os


class NotReadyError(Exception):
    """Airflow's metadata database can't be used."""


def create_database() -> None:
    """
    Create the tables in the temporary home, which takes about 2 seconds.

    :raises NotReadyError: Airflow's database is elsewhere.
    """
    from airflow.configuration import conf
    from airflow.utils.db import initdb

    # Whatever was set since, write to no database but the tests' own.
    url, home = conf.get("database", "sql_alchemy_conn"), os.environ.get("AIRFLOW_HOME", "")
    if not home or not str(url).startswith("sqlite:///" + home):
        raise NotReadyError(
            "Airflow was isolated, but its database is elsewhere: something sets AIRFLOW_HOME or "
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN after pytest started."
        )
    initdb()


def expect_database() -> None:
    """
    Check that the user's own database can be used.

    :raises NotReadyError: It can't be reached, or its schema is not that of this version of Airflow.
    """
    from airflow.configuration import AIRFLOW_HOME
    from airflow.utils.db import check_migrations
    from sqlalchemy.exc import SQLAlchemyError

    try:
        check_migrations(timeout=1)  # type: ignore[no-untyped-call]
    except (SQLAlchemyError, TimeoutError):
        raise NotReadyError(
            f"run_dag can't use the metadata database of the Airflow in {AIRFLOW_HOME}: run 'airflow db migrate' there, "
            "or set getimg_airflow = isolated for a temporary one."
        ) from None
