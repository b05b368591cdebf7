# SPDX-License-Identifier: Apache-2.0
"""
Schedule image and video generation with getimg.ai in Apache Airflow, and keep the files in S3.

- ``hooks``, ``operators``, ``transfers``, ``sensors``, ``triggers``, ``decorators``, ``retry``, ``links``: what DAGs use.
- ``api``: the getimg.ai API, Airflow-free.
- ``durable``: paying once.
- ``batch``: requests in, saved objects out.
- ``s3``: from a signed URL to an object.
- ``plugin``: the gallery and the spend page in Airflow's UI.
- ``simulator``, ``testing``: a local simulator of the API, and a test kit over it.
"""

__version__ = "0.1.0"
