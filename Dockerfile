# SPDX-License-Identifier: Apache-2.0
# The official Airflow image with this provider, built from source, and its simulator.
# By tag, not by digest: see the note in docker-compose.yaml.
ARG AIRFLOW_VERSION=3.3.2
FROM apache/airflow:${AIRFLOW_VERSION}
ARG AIRFLOW_VERSION

# The versions that the tests ran with, each checked by its hash. `make lock` generates it.
COPY requirements-image.lock /tmp/
RUN pip install --no-cache-dir --require-hashes --requirement /tmp/requirements-image.lock

# Packages of your DAGs (see .env.example). With Airflow's own version among them, so that none can replace it.
ARG DAG_PACKAGES=
# hadolint ignore=DL3013,SC2086
RUN if [ -n "${DAG_PACKAGES}" ]; then \
        pip install --no-cache-dir "apache-airflow==${AIRFLOW_VERSION}" ${DAG_PACKAGES}; \
    fi

COPY --chown=airflow:0 pyproject.toml README.md LICENSE /tmp/source/
COPY --chown=airflow:0 airflow_provider_getimg /tmp/source/airflow_provider_getimg
RUN pip install --no-cache-dir --no-deps --no-build-isolation /tmp/source
