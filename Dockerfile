# SPDX-License-Identifier: Apache-2.0
# The official Airflow image with this provider, built from source, and its simulator.
ARG AIRFLOW_VERSION=3.3.2

FROM apache/airflow:${AIRFLOW_VERSION} AS build
WORKDIR /tmp/source
COPY --chown=airflow:0 pyproject.toml README.md LICENSE ./
COPY --chown=airflow:0 airflow_provider_getimg airflow_provider_getimg
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /tmp/wheels .

FROM apache/airflow:${AIRFLOW_VERSION}
ARG AIRFLOW_VERSION
COPY --from=build /tmp/wheels /tmp/wheels
# With Airflow's own version among the requirements, so that no dependency can replace it. Celery and kombu 5.7
# break the Celery provider 3.26: "executor could not be loaded" is all that the scheduler says then.
# hadolint ignore=DL3013
RUN wheel="$(ls /tmp/wheels/*.whl)" \
    && pip install --no-cache-dir \
        "apache-airflow[celery]==${AIRFLOW_VERSION}" "celery<5.7" "kombu<5.7" "${wheel}[simulator]"
