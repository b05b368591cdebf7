# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from airflow_provider_getimg.durable.reference_images import identity

AZURE = "sp=r&st=2026-11-30&se=2026-12-01&spr=https&sv=2024-11-04&sr=b&skoid=1&sktid=2&skt=3&ske=4&sks=b&skv=5&sig=abc"


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("X-Amz-Date=20261130T000000Z&X-Amz-Signature=abc", ""),
        ("X-Goog-Signature=abc&w=100", "?w=100"),
        ("Expires=1&Signature=abc&Key-Pair-Id=K", ""),
        (AZURE, ""),
        (f"sku=A-17&{AZURE}", "?sku=A-17"),
        # Azure's short names, in a URL that Azure has not signed.
        ("sku=A-17&st=front&se=2&sv=3", "?sku=A-17&st=front&se=2&sv=3"),
    ],
    ids=["S3", "Google", "CloudFront", "Azure", "Azure, and a product", "no signature"],
)
def test_reference_is_identified_by_its_url_without_the_signature(query, kept):
    url = "https://a.test/photo"
    assert identity([{"url": f"{url}?{query}"}]) == [{"url": url + kept}]
