# SPDX-License-Identifier: Apache-2.0
"""``TransferToS3Operator`` with servers that break the API's contract: a billed file is saved if it is an image."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.retry import GetimgRetryPolicy
from airflow_provider_getimg.s3 import copier
from airflow_provider_getimg.s3.copier import ATTEMPTS
from airflow_provider_getimg.simulator.odd import TEXTS
from airflow_provider_getimg.version_compat import RetryAction
from tests.support.raw_servers import RawServer, response
from tests.support.saving import Saving, bytes_of

if TYPE_CHECKING:
    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS

MIB = 1024 * 1024
# Smaller files are kept in memory, larger ones on disk.
LARGE = 12 * MIB
OFTEN = 99
OCTET_STREAM = "application/octet-stream"
BILL = r"^Generation req-\w+ was billed \(0\.04 USD\) and is not saved\. "


@pytest.fixture(autouse=True)
def _connections(monkeypatch, simulator: GetimgSimulator, seaweedfs: SeaweedFS):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())
    connection = json.loads(simulator.process.connection())
    # For the servers that tests start beside the simulator.
    connection["extra"] = {"allowed_networks": ["127.0.0.1/32"]}
    monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", json.dumps(connection))
    # Shorter pauses between attempts, to save time; their number stays the same.
    monkeypatch.setattr(copier, "BACKOFF_FIRST", 0.01)


@pytest.fixture(scope="module")
def own_bucket(seaweedfs: SeaweedFS) -> str:
    """One bucket for all of these tests, each with its own folder: creating a bucket takes time."""
    return seaweedfs.create_bucket(f"odd-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def saving(simulator: GetimgSimulator, seaweedfs: SeaweedFS, own_bucket: str, context) -> Saving:
    return Saving(simulator, seaweedfs.client(), own_bucket, context)


def play(simulator: GetimgSimulator, **fault: Any) -> None:
    simulator.faults.clear()
    simulator.faults.add({"on": "download", "kind": "file", "times": OFTEN, **fault})


def fetches(simulator: GetimgSimulator) -> int:
    """Return how many downloads got the fault."""
    return (
        OFTEN - httpx.get(f"{simulator.url}/_simulator/faults", trust_env=False).json()["faults"][0]["times"]
    )


def check_saved(saving: Saving, row: dict[str, Any], content: bytes, mime_type: str = "image/jpeg") -> None:
    """Check that a file is in S3 unchanged, and that its row matches it."""
    stored = saving.client.get_object(Bucket=saving.bucket, Key=row["key"])
    assert stored["Body"].read() == content
    assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert row["mime_type"] == mime_type
    # SeaweedFS replaces this type with that of the key's extension.
    assert stored["ContentType"] == mime_type or mime_type == OCTET_STREAM


def check_not_saved(saving: Saving, generation: Any, kind: type[errors.GetimgError], sentence: str) -> None:
    """Check that a file is not saved, that the error starts with the bill, and whether the policy retries it."""
    with pytest.raises(kind, match=BILL + sentence) as caught:
        saving.transfer(generation)
    error = caught.value
    assert type(error) is kind
    assert (error.billed, str(error.cost), error.generation_ids) == ("yes", "0.04", (generation["id"],))
    assert "sig=" not in str(error)
    assert saving.keys() == []
    decision = GetimgRetryPolicy().evaluate(error, 1, 3)
    assert (decision.action is RetryAction.FAIL) is (kind is not errors.DownloadError)


def served_by(server: RawServer, generation: dict[str, Any]) -> dict[str, Any]:
    """Return the response with its file on another server."""
    [file] = generation["data"]
    return {**generation, "data": [{**file, "url": f"{server.url}/f?sig=secret"}]}


class TestFileServerResponse:
    @pytest.mark.parametrize(
        "encoding",
        ["aws-chunked", "", "Identity", "binary", "utf-8", "none", "gzip", "br", "deflate", "x, y"],
        ids=repr,
    )
    def test_unencoded_bytes_are_saved_whatever_the_content_encoding_header_says(
        self, simulator, saving, encoding
    ):
        generation = saving.generate()
        content = bytes_of(generation)
        play(simulator, headers={"Content-Encoding": encoding})
        [row] = saving.transfer(generation)
        check_saved(saving, row, content)
        assert fetches(simulator) == 1

    @pytest.mark.parametrize("size", [0, LARGE], ids=["in memory", "on disk"])
    @pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip"])
    @pytest.mark.parametrize("said", [{}, {"Content-Encoding": None}], ids=["said", "not said"])
    def test_gzip_is_decompressed_with_or_without_its_header(self, simulator, saving, size, encoding, said):
        simulator.settings(file_size=size)
        generation = saving.generate()
        content = bytes_of(generation)
        play(simulator, encoding=encoding, headers=said)
        [row] = saving.transfer(generation)
        check_saved(saving, row, content)

    @pytest.mark.parametrize("layers", [1, 2])
    def test_gzip_that_decompresses_to_more_than_max_bytes_is_rejected(self, saving, layers):
        body = gzip.compress(b"\xff\xd8\xff" + b"\0" * (20 * MIB))
        body = gzip.compress(body) if layers == 2 else body
        with RawServer(response(body, "Content-Encoding: gzip")) as server:
            generation = served_by(server, saving.generate())
            with pytest.raises(
                errors.FileRefusedError,
                match=rf"{BILL}File 0 of .* must be at most {10 * MIB} bytes \(max_bytes\), got more\. It was not saved",
            ):
                saving.transfer(generation, max_bytes=10 * MIB)
        assert server.visits == 1

    def test_truncated_gzip_is_retried_and_not_saved(self, saving):
        generation = saving.generate()
        body = gzip.compress(bytes_of(generation))[:-5]
        with RawServer(response(body, "Content-Encoding: gzip")) as server:
            check_not_saved(
                saving,
                served_by(server, generation),
                errors.DownloadError,
                r"The download of .* is compressed and can't be decompressed\.$",
            )
        assert server.visits == ATTEMPTS

    @pytest.mark.parametrize("size", [0, LARGE], ids=["in memory", "on disk"])
    @pytest.mark.parametrize("length", ["padded", "none", "chunked"])
    @pytest.mark.parametrize("output_format", ["jpeg", "png", "webp"])
    def test_body_with_a_padded_length_no_length_or_in_chunks_is_saved(
        self, simulator, saving, size, length, output_format, capsys
    ):
        simulator.settings(file_size=size)
        generation = saving.generate(output_format=output_format)
        content = bytes_of(generation)
        play(simulator, length=length)
        [row] = saving.transfer(generation)
        check_saved(saving, row, content, f"image/{output_format}")
        assert ("came without a length" in capsys.readouterr().out) is (length == "none")

    @pytest.mark.parametrize("output_format", ["jpeg", "png", "webp"])
    @pytest.mark.parametrize("part", [0.5, 1], ids=["half", "all but a byte"])
    def test_truncated_body_without_a_length_is_retried_and_not_saved(self, saving, output_format, part):
        generation = saving.generate(output_format=output_format)
        content = bytes_of(generation)
        cut = content[: min(int(len(content) * part), len(content) - 1)]
        with RawServer(b"HTTP/1.0 200 OK\r\n\r\n" + cut) as server:
            check_not_saved(
                saving,
                served_by(server, generation),
                errors.DownloadError,
                rf"The download of .* broke: {len(cut)} bytes arrived without a length, and the file's end is missing\.$",
            )
        assert server.visits == ATTEMPTS

    def test_chunked_encoding_takes_precedence_over_content_length(self, saving):
        generation = saving.generate()
        content = bytes_of(generation)
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n"
        with RawServer(head + chunks) as server:
            [row] = saving.transfer(served_by(server, generation))
        check_saved(saving, row, content)

    @pytest.mark.parametrize("end", [b"", b"0\r\nno trailer\r\n\r\n"], ids=["no last chunk", "bad trailer"])
    @pytest.mark.parametrize("output_format", ["jpeg", "png", "webp"])
    def test_chunks_with_an_invalid_end_are_saved_only_if_the_file_is_complete(
        self, saving, output_format, end
    ):
        generation = saving.generate(output_format=output_format)
        content = bytes_of(generation)
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        with RawServer(head + b"%x\r\n%s\r\n" % (len(content), content) + end) as server:
            [row] = saving.transfer(served_by(server, generation))
        check_saved(saving, row, content, f"image/{output_format}")
        saving.client.delete_object(Bucket=saving.bucket, Key=row["key"])
        cut = content[:-1]
        with RawServer(head + b"%x\r\n%s\r\n" % (len(cut), cut) + end) as server:
            check_not_saved(
                saving, served_by(server, generation), errors.DownloadError, r"The download of .* broke: "
            )

    @pytest.mark.parametrize(
        "header",
        [
            b"X Foo: a",
            b"X-Foo: \x00",
            b"Content-Length:",
            b"Content-Length: many",
            b"Transfer-Encoding: identity",
        ],
        ids=repr,
    )
    def test_file_is_saved_despite_a_malformed_header(self, saving, header):
        generation = saving.generate()
        content = bytes_of(generation)
        with RawServer(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n%s" % (header, content)) as server:
            [row] = saving.transfer(served_by(server, generation))
        check_saved(saving, row, content)

    @pytest.mark.parametrize("status", [200, 201, 203, 206, 226])
    def test_complete_file_is_saved_whichever_success_status_it_has(self, simulator, saving, status):
        generation = saving.generate()
        content = bytes_of(generation)
        play(simulator, status=status)
        [row] = saving.transfer(generation)
        check_saved(saving, row, content)

    @pytest.mark.parametrize(
        "content_range",
        ["bytes 0-99/*", "", "bytes */\xb2", "bytes 0-1/99999999999999999999999", "nonsense"],
        ids=repr,
    )
    def test_206_without_a_total_length_is_saved_only_if_the_file_is_complete(self, saving, content_range):
        generation = saving.generate()
        content = bytes_of(generation)
        headers = [b"Content-Range: " + content_range.encode("latin-1")]
        with RawServer(response(content, *headers, status="206 Partial Content")) as server:
            [row] = saving.transfer(served_by(server, generation))
        check_saved(saving, row, content)
        saving.client.delete_object(Bucket=saving.bucket, Key=row["key"])
        with RawServer(response(content[:1000], *headers, status="206 Partial Content")) as server:
            check_not_saved(
                saving,
                served_by(server, generation),
                errors.DownloadError,
                "The download of .* broke: 1000 bytes arrived",
            )

    def test_206_with_part_of_the_file_is_not_saved(self, saving):
        generation = saving.generate()
        part = response(
            bytes_of(generation)[:1000], "Content-Range: bytes 0-999/05000", status="206 Partial Content"
        )
        with RawServer(part) as server:
            check_not_saved(
                saving,
                served_by(server, generation),
                errors.DownloadError,
                r"The download of .* broke: 1000 of 5000 bytes arrived, as a part of the file\.$",
            )

    def test_five_redirects_are_followed_and_six_are_not(self, simulator, saving):
        generation = saving.generate()
        content = bytes_of(generation)
        play(simulator, redirects=5)
        [row] = saving.transfer(generation)
        check_saved(saving, row, content)
        saving.client.delete_object(Bucket=saving.bucket, Key=row["key"])
        play(simulator, redirects=6)
        check_not_saved(
            saving, generation, errors.DownloadError, r"The URL of .* redirects more than 5 times\.$"
        )

    @pytest.mark.parametrize("header", ["Date", "Retry-After", "Last-Modified", "X-RateLimit-Reset", "ETag"])
    @pytest.mark.parametrize(
        "value",
        ["Mon, 01 Jan 2026 00:00:00 +9999999999999", "9e11", "1e400", "-5", "nan", "\xff\xb2"],
        ids=repr,
    )
    def test_file_is_saved_despite_an_invalid_value_of_an_informational_header(self, saving, header, value):
        generation = saving.generate()
        content = bytes_of(generation)
        headers = header.encode() + b": " + value.encode("latin-1")
        with RawServer(response(content, headers)) as server:
            [row] = saving.transfer(served_by(server, generation))
        check_saved(saving, row, content)


class TestImageType:
    @pytest.mark.parametrize(
        ("said", "is_odd"),
        [
            ("image/jpeg", False),
            ("image/jpg", False),
            ("image/pjpeg", False),
            ("IMAGE/JPEG; q=0.9", False),
            ("application/octet-stream", True),
            ("image/*", True),
            ("image/x-png", True),
            ("text/html", True),
            ("binary/octet-stream", True),
            ("\u202e", True),
            (None, True),
            ("", True),
            (7, True),
            ({}, True),
        ],
        ids=repr,
    )
    def test_type_is_detected_from_the_bytes_whatever_the_api_promised(self, saving, said, is_odd, capsys):
        generation = saving.generate()
        content = bytes_of(generation)
        generation["data"][0]["mime_type"] = said
        [row] = saving.transfer(generation)
        check_saved(saving, row, content)
        # image/x-png promises a PNG: if a type was promised, the key is the planned one.
        assert row["key"].endswith("/0.png" if said == "image/x-png" else "/0.jpg")
        log = capsys.readouterr().out
        assert ("It is saved as image/jpeg." in log) is is_odd

    @pytest.mark.parametrize("said", ["text/html", "image/png", "garbage", None], ids=repr)
    def test_content_type_header_of_the_file_server_is_ignored(self, simulator, saving, said):
        generation = saving.generate()
        content = bytes_of(generation)
        play(simulator, headers={"Content-Type": said})
        [row] = saving.transfer(generation)
        check_saved(saving, row, content)

    @pytest.mark.parametrize(
        ("found", "mime_type"),
        [
            ("jpeg", "image/jpeg"),
            ("webp", "image/webp"),
            ("gif", "image/gif"),
            ("avif", "image/avif"),
            ("svg", OCTET_STREAM),
        ],
    )
    def test_unexpected_type_is_saved_at_the_planned_key_with_the_detected_type(
        self, simulator, saving, found, mime_type, capsys
    ):
        generation = saving.generate(output_format="png")
        play(simulator, bytes=found)
        content = bytes_of(generation)
        [row] = saving.transfer(generation)
        check_saved(saving, row, content, mime_type)
        assert row["key"].endswith("/0.png")
        assert "image/png was promised. It is saved as " + mime_type in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("found", "extension", "mime_type"),
        [("avif", "avif", "image/avif"), ("png", "png", "image/png"), ("svg", "bin", OCTET_STREAM)],
    )
    def test_extension_comes_from_the_bytes_if_the_api_promised_no_type(
        self, simulator, saving, found, extension, mime_type
    ):
        generation = saving.generate()
        del generation["data"][0]["mime_type"]
        play(simulator, bytes=found)
        content = bytes_of(generation)
        [row] = saving.transfer(generation)
        check_saved(saving, row, content, mime_type)
        assert row["key"].endswith(f"/0.{extension}")
        assert saving.transfer(generation, try_number=2) == [row]

    @pytest.mark.parametrize(
        ("found", "what"),
        [
            ("html", "returned a web page instead of an image"),
            ("json", "returned JSON instead of an image"),
            ("text", "returned text instead of an image"),
            ("nothing", "was empty"),
        ],
    )
    def test_content_other_than_an_image_is_rejected_if_it_is_sent_twice(
        self, simulator, saving, found, what
    ):
        generation = saving.generate()
        play(simulator, bytes=found, headers={"Content-Type": "image/jpeg"})
        check_not_saved(
            saving,
            generation,
            errors.FileRefusedError,
            rf"The download of .* {what}\. The server sent the same content again\.$",
        )
        assert fetches(simulator) == 2

    @pytest.mark.parametrize(
        "page",
        [
            b"\xef\xbb\xbf" + TEXTS["html"],
            b"\0\0\0" + TEXTS["html"],
            b" \r\n\t" * 100 + TEXTS["html"],
            TEXTS["html"].decode().encode("utf-16"),
            TEXTS["html"].decode().encode("utf-16-be"),
            b"\n" * 3000 + TEXTS["html"],
            gzip.compress(TEXTS["html"]),
            TEXTS["svg"].replace(b"<rect", b"<script>alert(1)</script><rect"),
            b"<script>alert(1)</script>",
            b"alert(1)",
            b"\0" * 5000,
        ],
        ids=[
            "mark",
            "nul",
            "space",
            "utf-16",
            "utf-16-be",
            "lines",
            "gzip",
            "svg",
            "script",
            "js",
            "only nul",
        ],
    )
    def test_page_or_script_is_rejected_whatever_its_encoding_and_first_bytes(self, saving, page):
        generation = saving.generate()
        generation["data"][0]["mime_type"] = "text/html"
        with RawServer(response(page, "Content-Type: text/html")) as server:
            check_not_saved(
                saving,
                served_by(server, generation),
                errors.FileRefusedError,
                r"The download of .* returned (?:a web page|markup|text) instead of an image\.",
            )
        assert server.visits == 2

    def test_download_is_retried_as_long_as_the_content_changes(self, simulator, saving):
        generation = saving.generate()
        content = bytes_of(generation)
        kinds = ["html", "json", "text", "nothing"]
        simulator.faults.add(*([{"on": "download", "kind": "file", "bytes": kind} for kind in kinds]))
        [row] = saving.transfer(generation)
        check_saved(saving, row, content)

    def test_batch_saves_each_image_with_its_detected_type(self, simulator, saving):
        kinds = ["jpeg", "png", "webp", "gif", "avif"]
        simulator.faults.add(*([{"on": "download", "kind": "file", "bytes": kind} for kind in kinds]))
        rows = saving.manifest(saving.batch(len(kinds), transfer_concurrency=1))
        assert {row["outcome"] for row in rows} == {"saved"}
        keys = saving.keys()
        stored = [saving.client.head_object(Bucket=saving.bucket, Key=saving.folder + key) for key in keys]
        assert {each["ContentType"] for each in stored} == {f"image/{kind}" for kind in kinds}


class TestUrlThatDoesNotWork:
    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_401_403_and_404_are_retried_within_the_try(self, simulator, saving, status, capsys):
        generation = saving.generate()
        content = bytes_of(generation)
        simulator.faults.add({"on": "download", "kind": "status", "status": status, "times": 3})
        [row] = saving.transfer(generation)
        check_saved(saving, row, content)
        assert capsys.readouterr().out.count(f"returned {status}. Attempt ") == 3

    @pytest.mark.parametrize("status", [401, 403, 404])
    @pytest.mark.parametrize("deletes_at", [None, "2100-01-01T00:00:00Z", "some day"], ids=str)
    def test_401_403_and_404_before_or_without_a_deletion_time_fail_with_a_retryable_error(
        self, simulator, saving, status, deletes_at
    ):
        generation = saving.generate()
        generation["data"][0]["deletes_at"] = deletes_at
        simulator.faults.add({"on": "download", "kind": "status", "status": status, "times": OFTEN})
        check_not_saved(saving, generation, errors.DownloadError, rf"The download of .* returned {status}\.$")
        assert fetches(simulator) == ATTEMPTS

    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_401_403_and_404_after_the_deletion_time_are_reported_as_gone(self, simulator, saving, status):
        generation = saving.generate()
        generation["data"][0]["deletes_at"] = "2020-01-01T00:00:00Z"
        simulator.faults.add({"on": "download", "kind": "status", "status": status, "times": OFTEN})
        check_not_saved(
            saving,
            generation,
            errors.FileGoneError,
            rf"File 0 of .* is no longer served \({status}\); it was to be deleted at 2020-01-01T00:00:00\+00:00\. To "
            r"regenerate it \(billed\), clear the task that generated it",
        )
        assert fetches(simulator) == 1

    @pytest.mark.parametrize("deletes_at", [None, "2100-01-01T00:00:00Z"], ids=str)
    def test_410_is_reported_as_gone_whatever_the_deletion_time(self, simulator, saving, deletes_at):
        generation = saving.generate()
        generation["data"][0]["deletes_at"] = deletes_at
        simulator.faults.add({"on": "download", "kind": "status", "status": 410, "times": OFTEN})
        when = (
            r"the API gave no deletion time"
            if deletes_at is None
            else r"it was to be deleted at 2100-01-01T00:00:00\+00:00"
        )
        check_not_saved(
            saving,
            generation,
            errors.FileGoneError,
            rf"File 0 .* \(410\); {when}\. To regenerate",
        )
        assert fetches(simulator) == 1

    def test_500_after_the_deletion_time_is_not_reported_as_gone(self, simulator, saving):
        generation = saving.generate()
        generation["data"][0]["deletes_at"] = "2020-01-01T00:00:00Z"
        simulator.faults.add({"on": "download", "kind": "status", "status": 500, "times": OFTEN})
        check_not_saved(saving, generation, errors.DownloadError, r"The download of .* returned 500\.$")

    @pytest.mark.parametrize("past", [timedelta(seconds=3), timedelta(days=400)], ids=str)
    def test_file_past_its_deletion_time_by_the_local_clock_is_still_requested(self, saving, past):
        generation = saving.generate()
        content = bytes_of(generation)
        generation["data"][0]["deletes_at"] = (datetime.now(UTC) - past).isoformat()
        [row] = saving.transfer(generation)
        check_saved(saving, row, content)

    @pytest.mark.parametrize(
        ("date", "is_over"),
        [
            (datetime.now(UTC) - timedelta(hours=2), False),
            (datetime.now(UTC) + timedelta(hours=2), True),
            ("Mon, 01 Jan 2026 00:00:00 +9999999999999", True),
            ("yesterday", True),
            (None, True),
        ],
        ids=["before", "after", "no such zone", "no date", "none"],
    )
    def test_deletion_time_is_compared_with_the_date_header_or_else_the_local_clock(
        self, simulator, saving, date, is_over
    ):
        generation = saving.generate()
        generation["data"][0]["deletes_at"] = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        header = format_datetime(date, usegmt=True) if isinstance(date, datetime) else date
        play(simulator, status=403, headers={"Date": header})
        check_not_saved(
            saving,
            generation,
            errors.FileGoneError if is_over else errors.DownloadError,
            r"(?:File|The download of)",
        )

    @pytest.mark.parametrize(
        ("date", "saved"), [(timedelta(hours=-2), True), (timedelta(hours=2), False)], ids=["before", "after"]
    )
    def test_404_is_retried_only_before_the_deletion_time_by_the_clock_of_the_server(
        self, simulator, saving, date, saved
    ):
        generation = saving.generate()
        generation["data"][0]["deletes_at"] = datetime.now(UTC).isoformat()
        headers = {"Date": format_datetime(datetime.now(UTC) + date, usegmt=True)}
        simulator.faults.add(
            {"on": "download", "kind": "status", "status": 404, "headers": headers, "times": 2}
        )
        if saved:
            assert len(saving.transfer(generation)) == 1
        else:
            check_not_saved(saving, generation, errors.FileGoneError, "File 0 .* is no longer served")


class TestOddApiResponse:
    """The simulator sends the response, and the transfer gets what ``GenerateImageOperator`` would return."""

    def odd(self, simulator: GetimgSimulator, saving: Saving, **fault: Any) -> dict[str, Any]:
        simulator.faults.add({"on": "image", "kind": "response", **fault})
        return saving.generate()

    @pytest.mark.parametrize(
        ("deletes_at", "is_known"),
        [
            (None, False),
            ("Fri, 01 Jan 2100 00:00:00 GMT", False),
            (4102444800, True),
            ("4102444800", True),
            ("2100-01-01T00:00:00", True),
            ("2100-01-01 00:00:00+02:00", True),
            ("0001-01-01T00:00:00Z", False),
            ("9999-12-31T23:59:59-14:00", False),
            (True, False),
            ([], False),
        ],
        ids=repr,
    )
    def test_file_is_saved_despite_an_odd_or_missing_deletion_time(
        self, simulator, saving, deletes_at, is_known
    ):
        generation = self.odd(simulator, saving, data=[{"$file": 0, "deletes_at": deletes_at}])
        [row] = saving.transfer(generation)
        check_saved(saving, row, bytes_of(generation))
        metadata = saving.client.head_object(Bucket=saving.bucket, Key=row["key"])["Metadata"]
        assert ("getimg-deletes-at" in metadata) is is_known

    def test_file_is_saved_if_the_response_has_only_its_url(self, simulator, saving):
        omitted = ["mime_type", "deletes_at", "width", "height"]
        generation = self.odd(
            simulator,
            saving,
            data=[{"$file": 0, "$omit": omitted}],
            merge={"status": None, "model": None, "usage": None, "id": None},
        )
        [row] = saving.transfer(generation, "{model}/{generation_id}-{width:04}x{height}.{extension}")
        check_saved(saving, row, bytes_of(generation))
        assert row["key"].startswith(f"{saving.folder}unknown-model/no-id-")
        assert row["key"].endswith("-unknownxunknown.jpg")
        assert (row["width"], row["height"], row["model"]) == (None, None, None)
        # A retry finds it: the id made for it is the same each time.
        assert saving.transfer(
            generation, "{model}/{generation_id}-{width:04}x{height}.{extension}", try_number=2
        ) == [row]

    @pytest.mark.parametrize(
        "neighbour", [{"error": {"code": "x"}}, None, {"$file": 1, "url": ""}, "x", 7, []], ids=repr
    )
    def test_file_is_saved_despite_an_invalid_entry_before_it(self, simulator, saving, neighbour):
        generation = self.odd(simulator, saving, data=[neighbour, {"$file": 0}])
        [row] = saving.transfer(generation)
        assert row["index"] == 1
        assert saving.keys() == ["1.jpg"]

    @pytest.mark.parametrize("mime_type", ["image/jpeg", None], ids=str)
    def test_two_files_that_would_share_a_key_are_both_saved(self, simulator, saving, mime_type):
        generation = self.odd(
            simulator, saving, data=[{"$file": 0, "mime_type": mime_type}, {"$file": 1, "mime_type": None}]
        )
        for if_exists in ("replace", "skip"):
            rows = saving.transfer(generation, "poster.{extension}", if_exists=if_exists)
            assert saving.keys() == ["poster-1.jpg", "poster.jpg"]
            for row, file in zip(rows, generation["data"], strict=True):
                check_saved(saving, row, httpx.get(file["url"], trust_env=False).content)

    @pytest.mark.parametrize(
        ("id", "key"), [("a/../../b", "a-..-..-b"), ("..", "-"), ("a\x1b[2J\u202eb\n", "a[2Jb")], ids=repr
    )
    def test_id_adds_no_folders_to_the_key_and_its_control_characters_are_removed(
        self, simulator, saving, id, key, capsys
    ):
        generation = self.odd(simulator, saving, merge={"id": id})
        capsys.readouterr()
        [row] = saving.transfer(generation, "x/{generation_id}.{extension}")
        assert saving.keys() == [f"x/{key}.jpg"]
        assert "\x1b[2J" not in row["generation_id"] + capsys.readouterr().out
        assert saving.transfer(generation, "x/{generation_id}.{extension}", try_number=2) == [row]


class TestUpstreamOutputs:
    def test_output_of_a_skipped_task_is_omitted_and_logged(self, saving, capsys):
        first, second = saving.generate(), saving.generate()
        rows = saving.transfer([first, None, [second, None]], "{generation_id}.{extension}")
        assert [row["generation_id"] for row in rows] == [first["id"], second["id"]]
        assert "Outputs of skipped tasks (None) are left out: 2." in capsys.readouterr().out

    @pytest.mark.parametrize("generation", [None, [None], [None, [None]]], ids=repr)
    def test_transfer_is_skipped_if_all_upstream_tasks_were_skipped(self, saving, generation):
        with pytest.raises(
            AirflowSkipException, match="All upstream tasks were skipped: there is nothing to save"
        ):
            saving.transfer(generation)

    @pytest.mark.parametrize("generation", [[], (), [[]]], ids=repr)
    def test_empty_list_needs_no_connection(self, saving, generation):
        assert saving.transfer(generation, aws_conn_id="none", getimg_conn_id="none") == []


class TestUnusableAwsConnection:
    @pytest.mark.parametrize(
        ("extra", "reason"),
        [
            ({"endpoint_url": "not a url"}, "Invalid endpoint: not a url"),
            ({"config_kwargs": {"nope": 1}}, "Got unexpected keyword argument 'nope'"),
            ({"config_kwargs": {"s3": {"addressing_style": "odd"}}}, "S3 addressing style odd is invalid"),
            ({"profile_name": "nope"}, r"The config profile \(nope\) could not be found"),
        ],
        ids=["endpoint", "setting", "style", "profile"],
    )
    def test_invalid_setting_fails_and_the_connection_is_named(self, saving, monkeypatch, extra, reason):
        connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        check_not_saved(
            saving,
            saving.generate(),
            errors.ConnectionConfigError,
            rf"The AWS connection 'aws_default' can't be used: {reason}",
        )

    @pytest.mark.parametrize(
        ("credentials", "extra", "error_class", "reason"),
        [
            (
                {"login": "a", "password": "b"},
                {
                    "service_config": {"sts": {"endpoint_url": "http://127.0.0.1:1"}},
                    "config_kwargs": {"retries": {"total_max_attempts": 1}},
                },
                errors.ObjectStoreError,
                "Could not connect",
            ),
            ({}, {}, errors.ConnectionUnavailableError, "Unable to locate credentials"),
        ],
        ids=["STS is unreachable", "no credentials"],
    )
    def test_role_that_cannot_be_assumed_now_fails_with_a_retryable_error(
        self, saving, monkeypatch, credentials, extra, error_class, reason
    ):
        extra = {"region_name": "us-east-1", "role_arn": "arn:aws:iam::123456789012:role/x", **extra}
        connection = {"conn_type": "aws", **credentials, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        with pytest.raises(
            error_class, match=rf"{BILL}The AWS connection 'aws_default' can't be used: {reason}"
        ) as error:
            saving.transfer(saving.generate())
        assert GetimgRetryPolicy().evaluate(error.value, 1, 3).action is not RetryAction.FAIL

    def test_unexpected_exception_reports_the_bill_and_logs_a_traceback(
        self, saving, monkeypatch, seaweedfs, capsys
    ):
        connection = json.loads(seaweedfs.aws_connection())
        connection["extra"]["aws_session_token"] = 7
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        with pytest.raises(
            errors.TransferError,
            match=rf"{BILL}File 0 of .* was not saved: AttributeError \(.*\), see the log\.$",
        ):
            saving.transfer(saving.generate())
        assert "Traceback" in capsys.readouterr().out


# Two tries: in the first, no file may grow beyond a limit, as on a full disk.
LIMITED = """
import json, resource, signal, sys
from airflow_provider_getimg.api.errors import GetimgError
from airflow_provider_getimg.s3 import copier
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

copier.BACKOFF_FIRST = 0.01
job, limit = json.loads(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for size in (limit, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        result = TransferToS3Operator(task_id="save", **job).execute({})
    except GetimgError as error:
        result = str(error)
    print("RESULT", json.dumps(result))
"""


def test_full_disk_is_named_in_the_error_and_a_retry_saves_the_missing_file(simulator, saving, tmp_path):
    simulator.settings(file_size=LARGE)
    large = saving.generate()
    simulator.settings(file_size=0)
    small = saving.generate()
    job = {
        "generation": [large, small],
        "s3_bucket": saving.bucket,
        "s3_key": saving.folder + "{generation_id}.{extension}",
    }

    command = [sys.executable, "-c", LIMITED, json.dumps(job), str(10 * MIB)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    results = [
        line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")
    ]
    message, rows = map(json.loads, results)
    assert message == (
        "1 of 2 files are saved; the other 1, billed at 0.04 USD, are not. The download of file 0 of generation "
        f"{large['id']} could not be buffered in the worker's {tmp_path} (File too large). Free space there, point TMPDIR to "
        "a larger disk, or lower the concurrency."
    )
    check_saved(saving, rows[0], bytes_of(large))
    check_saved(saving, rows[1], bytes_of(small))
    assert f"File 0 of generation {small['id']} is already saved" in done.stdout
    assert list(tmp_path.iterdir()) == []
