# SPDX-License-Identifier: Apache-2.0
"""The getimg.ai API in a box: for DAG tests, demos and load tests without a key, a bill or the internet.

Knows neither Airflow nor this package's own client: it is a second, separate reading of the API's contract, so
that a misreading in one of them shows as a failing test. Needs the extra ``[simulator]``; start it with
``getimg-simulator``.
"""
