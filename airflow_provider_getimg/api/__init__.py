# SPDX-License-Identifier: Apache-2.0
"""
The getimg.ai API for Python, without Airflow.

.. code-block:: python

    from airflow_provider_getimg.api.client import GetimgClient
    from airflow_provider_getimg.api.requests import ImageRequest

    with GetimgClient("sk_...") as client:
        response = client.generate_image(ImageRequest(model="seedream-5-lite", prompt="A red fox"))
        print(response.id, response.data[0].url)
"""
