# SPDX-License-Identifier: Apache-2.0
"""The metadata database that ``dag.test()`` needs: made for the tests, or the user's, which is left as it is."""

from __future__ import annotations

import os


class NotReadyError(Exception):
    """Airflow's metadata database can't be used."""


def create_database() -> None:
    """
    Make the tables in the temporary home, about 2 seconds.

    :raises NotReadyError: Airflow's database isn't there, but somewhere else.
    """
    from airflow.configuration import conf
    from airflow.utils.db import initdb

    # Whatever was set since, nothing but the tests' own database is written to.
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

    :raises NotReadyError: It can't be reached, or its tables aren't those of this version of Airflow.
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
