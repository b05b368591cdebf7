# SPDX-License-Identifier: Apache-2.0
"""However a paid response is mutated, every entry with a URL becomes a file, or the error quotes the response."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import pytest
from airflow.sdk.bases.xcom import BaseXCom
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_provider_getimg.api import lenient_json
from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.errors import OutcomeUnknownError
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.api.types import Generation
from tests.support.airflow_internals import deserialize
from tests.support.raw_servers import RawServer, response

SECRET = "5ec2e75ec2e7"
URLS = [f"https://files.test/v2/downloads/req-01/{index}?exp=1&sig={SECRET}{index}" for index in range(2)]
GOOD = {
    "id": "req-01HXYZABCD1234",
    "status": "completed",
    "model": "seedream-5-lite",
    "data": [
        {
            "url": url,
            "mime_type": "image/png",
            "deletes_at": "2100-01-01T00:00:00Z",
            "width": 16,
            "height": None,
        }
        for url in URLS
    ],
    "usage": {"total_cost": 0.08, "unit_price": 0.04, "quantity": 2, "billable_unit": "image"},
}
# JSON that json.dumps does not write, by the string that it replaces.
RAW = {
    "$DEEP": "[" * 5000 + "]" * 5000,
    "$HUGE": "1" * 5000,
    "$FLOAT": "-1e999",
    "$EXPONENT": "9" * 30 + "e9",
}
# Names that mean something to pydantic, Airflow or our own classes.
NAMES = [
    "id",
    "url",
    "data",
    "index",
    "cost",
    "usage",
    "self",
    "model_config",
    "_received",
    "__classname__",
    "__data__",
    "__version__",
    "__type",
    "",
    "\x00",
    "\ud800",
]

TEXTS = st.one_of(
    st.text(max_size=20), st.sampled_from([*NAMES, *RAW, "\u202e\x1b[2J\r\n", "NaN", "x" * 5000])
)
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([2**63, -(2**63), 2**64, 10**40, float("nan"), float("-inf"), -0.0, 1e300]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.sampled_from(URLS))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=5)), inner, max_size=4),
    ),
    max_leaves=8,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return each container in ``value`` with each of its keys."""
    found = []
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((value, key))
        if isinstance(part, dict | list):
            found += places(part)
    return found


@st.composite
def mutated(draw: Any) -> bytes:
    """Return the good response with some values replaced, deleted or added."""
    root = {"response": copy.deepcopy(GOOD)}
    for _ in range(draw(st.integers(1, 4))):
        if not (all_places := places(root)):
            break
        container, key = draw(st.sampled_from(all_places))
        match draw(st.sampled_from(["replace", "delete", "insert"])):
            case "replace":
                container[key] = draw(VALUES)
            case "delete" if container is not root:
                del container[key]
            case _ if isinstance(container, list):
                container.insert(key, draw(VALUES))
            case _ if container is not root:
                container[draw(st.sampled_from(NAMES))] = draw(VALUES)
    text = json.dumps(root.get("response"), ensure_ascii=draw(st.booleans()))
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw) if f'"{name}":' not in text else text
    return text.encode("utf-8", "surrogatepass") + draw(st.sampled_from([b"", b"\n", b"\x00", b"</html>"]))


def urls_in(received: Any) -> list[str]:
    """Return the good URLs among the entries of ``data``, read as simply as possible."""
    data = received.get("data") if isinstance(received, dict) else None
    entries = data if isinstance(data, list) else []
    return [entry["url"] for entry in entries if isinstance(entry, dict) and entry.get("url") in URLS]


def check(generation: Generation, content: bytes) -> None:
    """Check that no file is lost, and that Airflow can store the response."""
    found = [file.url for file in generation.data]
    assert found
    assert Counter(urls_in(lenient_json.loads(content))) <= Counter(found)
    for file in generation.data:
        assert file.deletes_at is None or file.deletes_at.utcoffset() is not None
        repr((file.mime_type, file.width, file.height, file.index))
    assert generation.id
    assert generation.id.isprintable()
    kept = generation.to_json()
    json.dumps(kept, allow_nan=False, ensure_ascii=False).encode()
    stored = BaseXCom.serialize_value(kept)
    assert deserialize(json.loads(json.dumps(stored, allow_nan=False))) == kept
    # As the next task reads it.
    assert [file.url for file in Generation.from_json(kept).data] == found
    assert Generation.from_json(kept).id == generation.id


@settings(max_examples=400, deadline=None)
@given(content=mutated())
@example(content=b"")
@example(content=b"null")
@example(content=b"[" * 100_000)
@example(content=b'{"data": ' * 30_000)
@example(content=b"\xff\xfe\x00")
def test_mutated_response_yields_all_its_files_or_a_value_error(content):
    try:
        received = lenient_json.loads(content)
    except ValueError:
        return
    try:
        generation = Generation.from_json(received)
    except ValueError:
        assert urls_in(received) == []
        return
    check(generation, content)


def asked(client: GetimgClient) -> Generation | OutcomeUnknownError:
    try:
        return client.generate_image(ImageRequest(model="m", prompt="p"))
    except OutcomeUnknownError as error:
        return error


def test_client_returns_a_mutated_response_or_quotes_it_in_an_unknown_outcome():
    with RawServer(b"") as server, GetimgClient("sk_test", base_url=server.url, timeout=20) as client:

        @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(content=mutated())
        def run(content: bytes) -> None:
            server.response = response(content)
            outcome = asked(client)
            if isinstance(outcome, Generation):
                check(outcome, content)
                return
            said = str(outcome)
            assert SECRET not in said
            assert "It says: " in said
            assert said.endswith("It may have been billed.")
            assert said.isprintable()
            assert outcome.received == content.decode("utf-8", errors="replace")

        run()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_response_is_read_in_any_unicode_encoding(encoding):
    received = lenient_json.loads(json.dumps(GOOD).encode(encoding))
    assert [file.url for file in Generation.from_json(received).data] == URLS
