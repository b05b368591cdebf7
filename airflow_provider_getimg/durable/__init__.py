# SPDX-License-Identifier: Apache-2.0
"""
Pay once: keep track of what was requested and billed across the tries of a task.

``paid_request`` defines the order of events: intent, request, response. If the process dies before the intent is recorded,
nothing was sent; between the intent and the response, the outcome is unknown; once the response is recorded, it is reused.
``ledger`` keeps the entry of one request, ``journal`` those of a batch, both in a ``task_state``: Airflow's task state store or
a folder in S3.
"""
