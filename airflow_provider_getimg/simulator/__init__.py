# SPDX-License-Identifier: Apache-2.0
"""A local simulator of the getimg.ai API, for DAG tests, demos and load tests without a key, a bill or the internet.

Imports neither Airflow nor this package's own client: it is a second, independent implementation of the API's
contract, so that a misreading in either one shows up as a failing test. Requires the extra ``[simulator]``; start it
with ``getimg-simulator``.
"""
