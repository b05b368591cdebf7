# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time

import pytest
from airflow.sdk._shared.secrets_masker import redact

from airflow_provider_getimg.hooks import masking
from airflow_provider_getimg.hooks.masking import Redacted, mask_signed_urls, unwrap
from tests.support.airflow_internals import serialize_template_field

QUERY = "exp=1795530722&sig={}"


def url(mark: str) -> str:
    return f"https://api.getimg.ai/v2/downloads/img_1/0?{QUERY.format(mark * 8)}"


@pytest.mark.parametrize(
    ("mark", "value"),
    [
        ("a1", url("a1")),
        ("b2", [{"data": [{"url": url("b2")}]}]),
        ("c3", str([{"data": [{"url": url("c3")}]}])),
        ("d4", json.dumps({"url": url("d4")})),
        ("e5", json.dumps({"url": url("e5")}).replace("/", "\\/")),
        ("f6", f"  Draw {url('f6')} anew"),
        ("g7", url("g7").replace("https", "HTTPS")),
        ("h8", ({"deep": [[{"er": url("h8")}]]},)),
    ],
    ids=["url", "responses", "their repr", "json", "escaped json", "in a sentence", "upper case", "deep"],
)
def test_signature_is_masked_wherever_the_url_appears(mark, value):
    query = QUERY.format(mark * 8)
    assert query in redact(f"https://elsewhere?{query}")
    mask_signed_urls(value)
    assert query not in redact(f"https://elsewhere?{query}")


@pytest.mark.parametrize(
    "value", ["https://[", "https://a.test", "?", "", None, 7, ["https://a.test/?"]], ids=repr
)
def test_value_without_a_signature_leaves_urls_unmasked(value):
    mask_signed_urls(value)
    assert redact("https://a.test/page") == "https://a.test/page"


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        ("https://h.test/it's.png?sig=maskedquote", "sig=maskedquote"),
        ([{"url": "https://h.test/a b.png?sig=maskedspace"}], "sig=maskedspace"),
        (json.dumps(json.dumps({"url": "https://h.test/f?sig=maskednested"})), "sig=maskednested"),
        ("https://user:maskedpassword@h.test/f", "maskedpassword"),
    ],
    ids=["quote", "space", "nested", "password"],
)
def test_secret_in_an_unusual_url_is_masked(value, secret):
    assert secret in redact(f"elsewhere {secret}")
    mask_signed_urls(value)
    assert secret not in redact(f"elsewhere {secret}")


def test_text_with_many_urls_is_masked_and_serialized_quickly():
    started = time.process_time()
    mask_signed_urls(["a://" * 15_000] * 20)
    Redacted(["a://" * 15_000] * 20).serialize()
    # Quadratic time took a minute for each.
    assert time.process_time() - started < 10


def test_number_of_masks_per_field_is_limited(monkeypatch):
    monkeypatch.setattr(masking, "_masks", set())
    mask_signed_urls([url(f"{number:04}") for number in range(1000)])
    assert len(masking._masks) == masking._MASKS_PER_FIELD


def test_signature_is_still_masked_after_many_tasks_in_one_process():
    # `airflow dags test` runs all tasks in one process.
    for number in range(110):
        mask_signed_urls(url(f"m{number:03}"))
    query = QUERY.format("m109" * 8)
    assert query not in redact(f"https://elsewhere?{query}")


def test_redacted_value_is_serialized_without_its_signatures():
    odd = "https://user:pw@h.test/it's a.png?sig=x"
    responses = [{"id": "img_1", "data": [{"url": url("zz"), "width": 7}, {"url": odd}]}]
    redacted = Redacted(responses)
    shown = serialize_template_field(redacted, "generation")
    assert "sig=" not in json.dumps(shown)
    assert shown[0]["data"][0]["url"] == "https://api.getimg.ai/v2/downloads/img_1/0?..."
    assert shown[0]["data"][1]["url"] == "https://***@h.test/it's a.png?..."
    assert "sig=" not in repr(redacted)
    assert unwrap(redacted) is responses
    assert unwrap(responses) is responses
