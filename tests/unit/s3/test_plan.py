# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.s3.keys import KEY_MAX_BYTES
from airflow_provider_getimg.s3.plan import TransferItem, parse_generations, plan, total_cost

SHA256 = "ab" * 32


def response(id: str = "img_1", files: int = 1, mime_type: object = "image/png", **fields: object) -> dict:
    media = {"url": "https://api.test/f", "mime_type": mime_type, "deletes_at": "2100-01-01T00:00:00Z"}
    return {"id": id, "status": "completed", "model": "seedream-5-lite", "data": [media] * files, **fields}


def of_types(*mime_types: object, id: str = "img_1") -> dict:
    """Return a response with a file of each type."""
    return {**response(id), "data": [{"url": "https://api.test/f", "mime_type": each} for each in mime_types]}


def copies(generation: object, s3_key: object, s3_bucket: object = "bucket") -> list[TransferItem]:
    responses, _ = parse_generations(generation)
    return plan(responses, s3_key, s3_bucket)


def keys(generation: object, s3_key: object, s3_bucket: object = "bucket") -> list[str]:
    return [copy.key for copy in copies(generation, s3_key, s3_bucket)]


def located(generation: object, s3_key: object, *mime_types: str) -> list[str]:
    """Return the keys once the types of the files are detected from their bytes."""
    planned = copies(generation, s3_key)
    return [copy.with_key(SHA256, found).key for copy, found in zip(planned, mime_types, strict=True)]


def test_response_with_two_files_is_planned_as_two_copies():
    first, second = copies(response(files=2), "a/{generation_id}-{index}.{extension}")
    assert (first.uri, second.uri) == ("s3://bucket/a/img_1-0.png", "s3://bucket/a/img_1-1.png")


class Lazy(Sequence):
    """A lazy sequence, as Airflow passes the outputs of a mapped task."""

    def __init__(self, *outputs: object) -> None:
        self._outputs = outputs

    def __len__(self) -> int:
        return len(self._outputs)

    def __getitem__(self, index):
        return self._outputs[index]


@pytest.mark.parametrize(
    ("generation", "ids", "gaps"),
    [
        (response("a"), ["a"], 0),
        ([response("a"), response("b")], ["a", "b"], 0),
        ((response("a"),), ["a"], 0),
        (Lazy(response("a"), None, response("b")), ["a", "b"], 1),
        ([response("a"), None, Lazy(response("b"), None, response("c"))], ["a", "b", "c"], 2),
        ([], [], 0),
        ([[]], [], 0),
        (None, [], 1),
        ([None, [None]], [], 2),
    ],
    ids=["one", "list", "tuple", "mapped", "both", "none", "no mapped ones", "skipped", "all skipped"],
)
def test_task_outputs_are_flattened_and_skipped_ones_are_counted(generation, ids, gaps):
    responses, left_out = parse_generations(generation)
    assert ([response.id for response in responses], left_out) == (ids, gaps)


@pytest.mark.parametrize(
    ("mime_type", "extension"),
    [
        ("image/jpeg", "jpg"),
        ("image/jpg", "jpg"),
        ("image/pjpeg", "jpg"),
        ("image/png", "png"),
        ("image/x-png", "png"),
        ("image/webp", "webp"),
        ("IMAGE/PNG; q=1", "png"),
        ("image/avif", "avif"),
        ("video/mp4", "mp4"),
    ],
)
def test_extension_follows_the_declared_type(mime_type, extension):
    assert keys(response(mime_type=mime_type), "x.{extension}") == [f"x.{extension}"]


@pytest.mark.parametrize(
    "mime_type",
    [None, "", "image/*", "application/octet-stream", "text/html", "image/svg+xml", 7, {}],
    ids=str,
)
@pytest.mark.parametrize(
    ("found", "extension"),
    [("image/jpeg", "jpg"), ("image/avif", "avif"), ("application/octet-stream", "bin")],
)
def test_extension_follows_the_bytes_if_no_known_type_is_declared(mime_type, found, extension):
    [copy] = copies(response(mime_type=mime_type), "x.{extension}")
    assert copy.key == ""
    assert copy.with_key(SHA256, found).key == f"x.{extension}"


def test_extension_follows_the_declared_type_even_if_the_bytes_differ():
    [copy] = copies(response(), "{sha256}.{extension}")
    assert copy.with_key(SHA256, "image/jpeg").key == f"{SHA256}.png"


def test_placeholder_accepts_a_format():
    assert keys(response(files=2), "{model}/{index:03d}") == ["seedream-5-lite/000", "seedream-5-lite/001"]


@pytest.mark.parametrize(
    ("width", "height", "key"),
    [
        (1536, 1024, "1536x1024.png"),
        (None, None, "unknownxunknown.png"),
        ("wide", -1, "unknownxunknown.png"),
    ],
)
def test_width_and_height_are_placeholders_and_unknown_if_invalid(width, height, key):
    sized = response()
    sized["data"] = [{**sized["data"][0], "width": width, "height": height}]
    assert keys(sized, "{width:04}x{height}.{extension}") == [key]


def test_index_is_the_position_in_the_response_even_beside_unusable_entries():
    odd = response()
    odd["data"] = [None, odd["data"][0], {"error": {}}, odd["data"][0]]
    assert keys(odd, "{index}") == ["1", "3"]


@pytest.mark.parametrize(
    ("id", "part"),
    [("a/../b", "a-..-b"), ("..", "-"), ("a\x1b\u202eb", "ab"), ("ä" * 3000, None)],
    ids=["folders", "parent", "controls", "long"],
)
def test_generation_id_is_sanitized_for_use_in_a_key(id, part):
    [key] = keys(response(id=id), "x/{generation_id}/y.png")
    assert key.count("/") == 2
    assert part is None or key == f"x/{part}/y.png"


def test_key_with_a_digest_is_rendered_once_the_digest_is_available():
    first, second = copies(response(files=2), "by-content/{sha256}.{extension}")
    assert first.key == ""
    assert first.with_key(SHA256, "image/png").key == f"by-content/{SHA256}.png"
    # Files with the same content are one object.
    assert second.with_key(SHA256, "image/png").uri == first.with_key(SHA256, "image/png").uri


class TestFilesOfOneGenerationThatMayShareAKey:
    def test_get_their_index_in_the_key(self):
        assert keys(response(files=3), "poster.png") == ["poster.png", "poster-1.png", "poster-2.png"]

    @pytest.mark.parametrize("promised", [(None, None), ("image/png", None), (None, "image/png")], ids=str)
    @pytest.mark.parametrize("found", [("image/png", "image/png"), ("image/png", "image/jpeg")], ids=str)
    def test_get_their_index_even_if_a_type_is_only_detected_from_the_bytes(self, promised, found):
        first, second = located(of_types(*promised), "poster.{extension}", *found)
        assert first == "poster.png"
        assert second == ("poster-1.png" if found[1] == "image/png" or promised[1] else "poster-1.jpg")


@pytest.mark.parametrize(
    ("generation", "s3_key", "sentence"),
    [
        (
            "{'id': 1}",
            "k",
            "generation must be the response of a generation (a dict), or a list of them, got str.",
        ),
        (7, "k", "generation must be the response of a generation (a dict), or a list of them, got int."),
        (
            [response(), 7],
            "{generation_id}",
            "generation[1] must be the response of a generation (a dict), got int.",
        ),
        (
            [[response(), "x"]],
            "k",
            "generation[0][1] must be the response of a generation (a dict), got str.",
        ),
        (
            [{"id": "x"}],
            "k",
            "generation[0] must be the response of a generation: it has no file with a URL.",
        ),
        (response(), "", "s3_key must be a key or a full s3://bucket/key"),
        (
            response(),
            "{nope}",
            "s3_key has the unknown placeholder '{nope}'. Known placeholders: {generation_id},",
        ),
        (response(), "{generation_id:d}", "s3_key has {generation_id:d}, which can't format 'img_1'."),
        (response(), "a/../b", "s3_key gives the key 'a/../b': no part of a key"),
        (
            [response("a"), response("b")],
            "{index}",
            "s3_key gives file 0 of generation a and file 0 of generation b the same key '0': distinguish them with "
            "{generation_id} and {index}.",
        ),
        (
            [response("a", mime_type=None), response("b")],
            "{index}.{extension}",
            "s3_key gives file 0 of generation a and file 0 of generation b the same key",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_invalid_generation_or_s3_key_is_rejected(generation, s3_key, sentence):
    with pytest.raises(InvalidInputError) as error:
        copies(generation, s3_key)
    assert error.value.message.startswith(sentence)


def test_output_that_is_passed_twice_is_planned_and_billed_once():
    assert keys([response("a"), [response("b"), response("a")]], "{generation_id}") == ["a", "b"]
    with pytest.raises(InvalidInputError, match=r"^Generation a was billed \(0\.04 USD\)"):
        parse_generations([response("a", usage={"total_cost": 0.04})] * 2 + ["b"])


def test_invalid_list_item_is_rejected_with_the_cost_of_the_other_generations():
    paid = [response(name, usage={"total_cost": 0.04}) for name in ("a", "b")]
    with pytest.raises(InvalidInputError) as error:
        parse_generations([paid[0], "a", paid[1], "b"])
    assert str(error.value).startswith(
        "2 generations were billed (0.08 USD together) and are not saved. generation[1] must"
    )
    assert (error.value.billed, error.value.cost, error.value.generation_ids) == (
        "yes",
        Decimal("0.08"),
        ("a", "b"),
    )


@pytest.mark.parametrize(
    ("costs", "total"), [([], 0), ([0.04, 0.1], "0.14"), ([0.04, None], None)], ids=["none", "two", "unknown"]
)
def test_total_cost_is_none_if_any_cost_is_unknown(costs, total):
    responses, _ = parse_generations(
        [response(str(number), usage={"total_cost": cost}) for number, cost in enumerate(costs)]
    )
    assert total_cost(responses) == (None if total is None else Decimal(total))


@given(
    parts=st.lists(
        st.sampled_from(
            ["a", "/", ".", "..", "{", "}", "{index}", "{extension}", "{sha256}", "{x}", "é", ":", "!"]
        )
    ),
    mime_types=st.lists(st.sampled_from(["image/png", "image/jpeg", None]), min_size=1, max_size=3),
)
def test_any_template_gives_valid_distinct_keys_or_is_rejected(parts, mime_types):
    template = "".join(parts)
    try:
        found = located(of_types(*mime_types), template, *["image/png"] * len(mime_types))
    except InvalidInputError:
        return
    assert len(set(found)) == len(mime_types) or "{sha256}" in template
    for key in found:
        assert key
        assert len(key.encode()) <= KEY_MAX_BYTES
        assert ".." not in key.split("/")


def labelled(id: str, **labels: object) -> dict:
    return response(id, request={"prompt": "A red fox", "labels": labels})


def test_labels_can_be_used_as_placeholders():
    generations = [labelled("img_1", sku="A-17", size=3), labelled("img_2", sku="B-02", size=14)]
    assert keys(generations, "{sku}/{size:03}.{extension}") == ["A-17/003.png", "B-02/014.png"]


def test_labels_come_from_their_own_response_even_if_the_api_repeats_an_id():
    generations = [labelled("img_1", sku="A"), labelled("img_1", sku="B")]
    generations[1]["data"] = [{**generations[1]["data"][0], "url": "https://a.test/other.png"}]
    assert keys(generations, "{sku}.{extension}") == ["A.png", "B.png"]


def test_label_does_not_override_a_file_placeholder():
    assert keys(labelled("img_1", generation_id="img_2"), "{generation_id}.png") == ["img_1.png"]


@pytest.mark.parametrize(
    ("generation", "sentence"),
    [
        (
            [labelled("img_1", sku="A-17"), labelled("img_2")],
            "Generation img_2 has no label 'sku', which s3_key uses.",
        ),
        (response(), "s3_key has the unknown placeholder '{sku}'."),
        (response(request={"labels": "A-17"}), "s3_key has the unknown placeholder '{sku}'."),
        (labelled("img_1", sku=None), "s3_key has the unknown placeholder '{sku}'."),
    ],
    ids=["of-one-alone", "of-none", "no-labels", "no-text"],
)
def test_missing_label_is_rejected(generation, sentence):
    with pytest.raises(InvalidInputError) as error:
        keys(generation, "{sku}-{generation_id}.png")
    assert error.value.message.startswith(sentence)
