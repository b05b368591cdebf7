# SPDX-License-Identifier: Apache-2.0
"""
An evening check of the account: is there enough money for the night?

A balance that runs out at night shows up as refused requests (402) in the morning. This DAG checks at 18:00 instead, when someone
can still top up: it reads the price of an image from the catalogue, and ``GetimgBalanceSensor`` waits until the balance covers all
images of the night. After an hour it fails, which is the alert: give it an ``on_failure_callback``, or a notifier.

It needs the connection ``getimg_default``. The model and the number of images are the run's params.

Safe to run at any time: it generates no image, and costs nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.sensors.balance import GetimgBalanceSensor

with DAG(
    dag_id="getimg_check_balance",
    schedule="0 18 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["getimg", "example"],
    doc_md=__doc__,
    params={"model": "seedream-5-lite", "images": 500},
):

    @task
    def cost_of_the_night(params: dict[str, Any] | None = None) -> float:
        """Return what the night's images will cost, in USD."""
        model, images = (params or {})["model"], (params or {})["images"]
        with GetimgHook() as hook:
            price = hook.image_price(model)
        if price is None:
            raise ValueError(f"The catalogue has no price for an image of {model}.")
        return float(price * images)

    GetimgBalanceSensor(
        task_id="wait_for_balance",
        minimum=cost_of_the_night(),
        mode="reschedule",
        poke_interval=timedelta(minutes=5),
        timeout=timedelta(hours=1),
    )
