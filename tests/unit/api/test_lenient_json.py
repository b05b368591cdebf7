# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_getimg.api import lenient_json
from tests.support.airflow_internals import deserialize, serialize

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63) + 1, 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ('{"a": NaN, "b": -Infinity}', {"a": None, "b": None}),
        ("1e999", None),
        ("-1e999", None),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", 2.0**63),
        ("1" * 5000, None),
        ('"a\\ud800b"', "a?b"),
        ('"a\\u0000b"', "ab"),
        ('"a\nb\tc"', "a\nb\tc"),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('{"__classname__": "os.system", "__data__": 1, "a": {"__version__": 0}}', {"a": {}}),
        ("\ufeff{}", {}),
        ("  \r\n{}", {}),
        ('{"a": 1}\n</html>', {"a": 1}),
        ('{"a": 1}{"b": 2}', {"a": 1}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_unusual_json_is_read_as_a_value_that_can_be_stored(content, value):
    assert lenient_json.loads(content.encode()) == value


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_character_encoding_is_detected(encoding):
    assert lenient_json.loads('{"a": "ü"}'.encode(encoding)) == {"a": "ü"}


def test_undecodable_bytes_are_replaced():
    assert lenient_json.loads(b'{"a": "\xff"}') == {"a": "\ufffd"}


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"\x00", b'{"a": ', b"nope", b"\xff\xfe", b"\x1f\x8b\x08"], ids=repr
)
def test_invalid_json_raises_value_error(content):
    with pytest.raises(ValueError, match=r"."):
        lenient_json.loads(content)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_unclosed_deep_nesting_is_rejected_quickly(opening):
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"."):
        lenient_json.loads(opening.encode() * 100_000)
    assert time.monotonic() - started < 5


def test_deep_nesting_is_truncated_to_what_airflow_can_store():
    value = lenient_json.loads(b'{"good": 1, "deep": ' + b"[" * 300 + b"]" * 300 + b"}")
    assert value["good"] == 1
    json.dumps(serialize(value))


@given(value=JSON)
@example(value=-(10**18) - 1)
def test_valid_json_is_read_unchanged_and_survives_airflow_serialization(value):
    read = lenient_json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if "\\u0000" not in json.dumps(value) and '"__' not in json.dumps(value):
        assert read == value
    assert deserialize(json.loads(json.dumps(serialize(read), allow_nan=False))) == read
