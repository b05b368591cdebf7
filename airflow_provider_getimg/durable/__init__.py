# SPDX-License-Identifier: Apache-2.0
"""
Paying once: what was requested and billed, across the tries of a task.

``paid_request`` is the order of events: intent, request, response. A process that dies before the intent is recorded has sent
nothing; between the intent and the response, the outcome is unknown; once the response is recorded, it is reused. ``ledger`` keeps
one request's entry, ``journal`` those of a batch, both in a ``task_state``: Airflow's task state store or a folder in S3.
"""
