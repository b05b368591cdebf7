# SPDX-License-Identifier: Apache-2.0
"""``TransferToS3Operator`` against the simulator and a real S3 server, with every download fault."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk import Asset, AssetAlias
from moto import mock_aws

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.links import OpenInS3Link
from airflow_provider_getimg.s3 import copier
from airflow_provider_getimg.s3.spool import MEMORY_BYTES
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator
from tests.support.raw_servers import RawServer
from tests.support.raw_servers import response as raw_response
from tests.support.s3_faults import S3FaultProxy

if TYPE_CHECKING:
    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS

KEY = "{generation_id}-{index}.{extension}"
BILL = r"Generation req-\w+ was billed \(0\.04 USD\) and is not saved\."
FILE = r"file 0 of generation req-\w+"
MIB = 1024 * 1024
# Smaller files are kept in memory, larger ones on disk.
LARGE = 12 * MIB
SIZES = [pytest.param(0, id="in memory"), pytest.param(LARGE, id="on disk")]


@pytest.fixture(autouse=True)
def _connections(monkeypatch, getimg_default, seaweedfs):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())
    # Shorter pauses between attempts, to save time; their number stays the same.
    monkeypatch.setattr(copier, "BACKOFF_FIRST", 0.01)


@pytest.fixture
def generate(simulator: GetimgSimulator):
    """Return a function that pays for images and returns their responses."""

    def make(count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        with GetimgClient(simulator.api_key, base_url=simulator.url) as client:
            return [
                client.generate_image(
                    ImageRequest.checked(model="seedream-5-lite", prompt=f"Picture {n}", **fields)
                ).to_json()
                for n in range(count)
            ]

    return make


@pytest.fixture
def transfer(bucket: str, context):
    """Return a function that runs the operator on responses, with an empty bucket."""

    def run(generation: Any, *, try_number: int = 1, **fields: Any) -> list[dict[str, Any]]:
        operator = TransferToS3Operator(
            task_id="save", generation=generation, **({"s3_bucket": bucket, "s3_key": KEY} | fields)
        )
        return operator.execute(context(try_number=try_number))

    return run


def bytes_of(response: dict[str, Any]) -> bytes:
    return httpx.get(response["data"][0]["url"], trust_env=False).raise_for_status().content


def stored(seaweedfs: SeaweedFS, bucket: str) -> dict[str, bytes]:
    """Return the content of all objects in the bucket."""
    client = seaweedfs.client()
    objects = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {
        entry["Key"]: client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read() for entry in objects
    }


def play(simulator: GetimgSimulator, **fault: Any) -> None:
    simulator.faults.add({"on": "download", **fault})


def test_every_file_is_saved_unchanged_with_its_row_and_metadata(
    simulator, seaweedfs, bucket, generate, transfer
):
    responses = generate(5, output_format="png")
    rows = transfer(responses)
    assert [row["generation_id"] for row in rows] == [response["id"] for response in responses]
    assert stored(seaweedfs, bucket) == {
        f"{response['id']}-0.png": bytes_of(response) for response in responses
    }
    first, content = rows[0], bytes_of(responses[0])
    head = seaweedfs.client().head_object(Bucket=bucket, Key=first["key"])
    assert first == {
        "uri": f"s3://{bucket}/{responses[0]['id']}-0.png",
        "bucket": bucket,
        "key": f"{responses[0]['id']}-0.png",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "etag": head["ETag"].strip('"'),
        "mime_type": "image/png",
        "width": responses[0]["data"][0]["width"],
        "height": responses[0]["data"][0]["height"],
        "generation_id": responses[0]["id"],
        "index": 0,
        "model": "seedream-5-lite",
        "cost": 0.04,
        "aws_conn_id": "aws_default",
    }
    assert head["ContentType"] == "image/png"
    assert head["Metadata"]["getimg-generation-id"] == responses[0]["id"]
    assert head["Metadata"]["getimg-sha256"] == first["sha256"]


def test_file_too_large_for_memory_is_saved_unchanged(simulator, seaweedfs, bucket, generate, transfer):
    simulator.settings(file_size=LARGE)
    [response] = generate()
    [row] = transfer(response)
    [content] = stored(seaweedfs, bucket).values()
    assert content == bytes_of(response)
    assert (row["bytes"], row["sha256"]) == (LARGE, hashlib.sha256(content).hexdigest())


ONCE = {
    "drop": {"kind": "drop_after_billing"},
    "truncate": {"kind": "truncate"},
    "wrong length": {"kind": "wrong_length"},
    "html": {"kind": "html"},
    "500": {"kind": "status", "status": 500},
    "503": {"kind": "status", "status": 503, "headers": {"Retry-After": "0"}},
    "429": {"kind": "status", "status": 429, "headers": {"Retry-After": "0"}},
    "no picture": {"kind": "status", "status": 200, "body": "{}"},
    "empty": {"kind": "status", "status": 200, "body": ""},
}


@pytest.mark.parametrize("size", [SIZES[0], pytest.param(LARGE, id="on disk", marks=pytest.mark.long)])
@pytest.mark.parametrize("fault", ONCE.values(), ids=ONCE.keys())
def test_download_that_fails_once_is_retried_within_the_try(
    simulator, seaweedfs, bucket, generate, transfer, fault, size
):
    simulator.settings(file_size=size)
    [response] = generate()
    play(simulator, **fault)
    transfer(response)
    assert list(stored(seaweedfs, bucket).values()) == [bytes_of(response)]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"kind": "drop_after_billing"}, "broke: Server disconnected without sending a response"),
        ({"kind": "truncate"}, r"broke: 6291456 of 12582912 bytes arrived"),
        ({"kind": "wrong_length"}, r"broke: 12582912 of 12583936 bytes arrived"),
        ({"kind": "status", "status": 500}, "returned 500"),
        ({"kind": "status", "status": 202}, "returned 202"),
        ({"kind": "status", "status": 304}, "returned 304"),
    ],
    ids=["drop", "truncate", "wrong length", "500", "202", "304"],
)
def test_download_that_keeps_failing_reports_the_bill_and_saves_nothing(
    simulator, seaweedfs, bucket, generate, transfer, fault, sentence
):
    simulator.settings(file_size=LARGE)
    [response] = generate()
    play(simulator, **fault, times=99)
    with pytest.raises(errors.DownloadError, match=rf"^{BILL} The download of {FILE} {sentence}\.$") as error:
        transfer(response)
    assert (error.value.billed, str(error.value.cost), error.value.generation_ids) == (
        "yes",
        "0.04",
        (response["id"],),
    )
    assert stored(seaweedfs, bucket) == {}


@pytest.mark.parametrize("kind", ["hang", "slow_first_byte", "slow_body"])
def test_download_from_a_slow_server_times_out(
    simulator, seaweedfs, bucket, generate, transfer, monkeypatch, kind
):
    monkeypatch.setenv(
        "AIRFLOW_CONN_GETIMG_DEFAULT",
        f'{{"conn_type": "getimg", "host": "{simulator.url}", "extra": {{"timeout": 1}}}}',
    )
    simulator.settings(file_size=LARGE)
    [response] = generate()
    play(simulator, kind=kind, seconds=60, times=99)
    with pytest.raises(errors.DownloadError, match="did not finish within 1 seconds"):
        transfer(response)
    assert stored(seaweedfs, bucket) == {}


def test_410_response_is_reported_as_gone_and_not_retried(simulator, seaweedfs, bucket, generate, transfer):
    [response] = generate()
    play(simulator, kind="status", status=410)
    with pytest.raises(
        errors.FileGoneError,
        match=rf"^{BILL} File 0 of generation {response['id']} is no longer served \(410\); it was to be deleted at 20.*\. "
        r"To regenerate it \(billed\), clear the task that generated it: the one upstream\.$",
    ):
        transfer(response)
    assert stored(seaweedfs, bucket) == {}


def test_one_failed_file_does_not_stop_the_others(simulator, seaweedfs, bucket, generate, transfer, capsys):
    responses = generate(4)
    responses[1]["data"][0]["url"] += "0"
    with pytest.raises(errors.TransferIncompleteError) as error:
        transfer(responses)
    assert str(error.value).startswith(
        f"3 of 4 files are saved; the other 1, billed at 0.04 USD, are not. The download of file 0 of generation {responses[1]['id']}"
    )
    assert error.value.generation_ids == (responses[1]["id"],)
    assert len(stored(seaweedfs, bucket)) == 3
    log = capsys.readouterr().out
    for response in responses:
        assert f"| {response['id']} |" in log
    assert log.count("| yes ") == 3
    assert log.count("| no ") == 1
    assert "sig=" not in log


def test_a_retry_downloads_only_what_is_missing(simulator, seaweedfs, bucket, generate, transfer):
    responses = generate(3)
    good, responses[1]["data"][0]["url"] = responses[1]["data"][0]["url"], "http://127.0.0.1:1/broken"
    with pytest.raises(errors.TransferIncompleteError):
        transfer(responses)
    responses[1]["data"][0]["url"] = good
    play(simulator, kind="status", status=503, headers={"Retry-After": "0"})
    rows = transfer(responses, try_number=2)
    assert [row["generation_id"] for row in rows] == [response["id"] for response in responses]
    play(simulator, kind="status", status=500, times=99)
    assert transfer(responses, try_number=3) == rows


@pytest.mark.parametrize("if_exists", ["skip", "fail"])
@pytest.mark.parametrize("may_list", [True, False], ids=["may list", "may not list"])
def test_many_keys_are_checked_by_one_listing_or_by_head_requests_if_listing_is_denied(
    simulator, seaweedfs, generate, transfer, monkeypatch, if_exists, may_list
):
    responses = generate(20)
    rows = transfer(responses[:3])
    with S3FaultProxy(seaweedfs.endpoint_url) as proxy:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", proxy.aws_connection(seaweedfs.aws_connection()))
        if not may_list:
            proxy.set_faults(
                [{"kind": "status", "code": "AccessDenied", "operation": "ListObjectsV2", "times": 9}]
            )
        assert transfer(responses, if_exists=if_exists)[:3] == rows
        operations = proxy.operations()
    assert operations.count("ListObjectsV2") == 1
    assert operations.count("HeadObject") == (3 if may_list else 20)
    assert operations.count("PutObject") == 17


@pytest.mark.parametrize("if_exists", ["skip", "fail"])
@pytest.mark.parametrize("size", SIZES)
def test_retry_accepts_a_saved_file_whose_deletion_time_has_passed(
    simulator, seaweedfs, bucket, generate, transfer, if_exists, size
):
    simulator.settings(file_size=size)
    [response] = generate()
    rows = transfer(response, if_exists=if_exists)
    response["data"][0]["deletes_at"] = "2020-01-01T00:00:00Z"
    simulator.faults.add({"on": "download", "kind": "status", "status": 410, "times": 99})
    assert transfer(response, try_number=2, if_exists=if_exists) == rows


class TestOccupiedKey:
    @pytest.fixture
    def occupied(self, seaweedfs, bucket, generate) -> dict[str, Any]:
        [response] = generate()
        seaweedfs.client().put_object(Bucket=bucket, Key="key", Body=b"theirs")
        return response

    def test_skip_fails_on_different_content_and_names_both_hashes(
        self, seaweedfs, bucket, occupied, transfer
    ):
        with pytest.raises(errors.ObjectExistsError) as error:
            transfer(occupied, s3_key="key")
        ours = hashlib.sha256(bytes_of(occupied)).hexdigest()
        theirs = hashlib.sha256(b"theirs").hexdigest()
        assert f"its SHA-256 is {theirs}, that of file 0 of generation {occupied['id']} is {ours}" in str(
            error.value
        )
        assert stored(seaweedfs, bucket) == {"key": b"theirs"}

    def test_skip_accepts_identical_content(self, seaweedfs, bucket, occupied, transfer):
        seaweedfs.client().put_object(Bucket=bucket, Key="key", Body=bytes_of(occupied))
        [row] = transfer(occupied, s3_key="key")
        assert row["sha256"] == hashlib.sha256(bytes_of(occupied)).hexdigest()

    def test_fail_raises_and_keeps_the_object(self, seaweedfs, bucket, occupied, transfer):
        with pytest.raises(errors.ObjectExistsError, match="already exists, and if_exists is 'fail'"):
            transfer(occupied, s3_key="key", if_exists="fail")
        assert stored(seaweedfs, bucket) == {"key": b"theirs"}

    def test_replace_overwrites_the_object(self, seaweedfs, bucket, occupied, transfer):
        transfer(occupied, s3_key="key", if_exists="replace")
        assert stored(seaweedfs, bucket) == {"key": bytes_of(occupied)}


@pytest.mark.parametrize("size", SIZES)
def test_sha256_placeholder_in_the_key_is_the_hash_of_the_content(
    simulator, seaweedfs, bucket, generate, transfer, size
):
    simulator.settings(file_size=size)
    [response] = generate()
    [row] = transfer(response, s3_key="by-content/{sha256}.jpg")
    assert row["key"] == f"by-content/{row['sha256']}.jpg"
    assert stored(seaweedfs, bucket) == {row["key"]: bytes_of(response)}
    assert transfer(response, s3_key="by-content/{sha256}.jpg", try_number=2) == [row]


def test_a_file_over_max_bytes_is_not_saved(simulator, seaweedfs, bucket, generate, transfer):
    simulator.settings(file_size=2 * MIB)
    [response] = generate()
    with pytest.raises(
        errors.FileRefusedError,
        match=rf"^{BILL} File 0 of .* must be at most 1048576 bytes \(max_bytes\), got 2097152\. It was not saved\.$",
    ):
        transfer(response, max_bytes=MIB)
    assert stored(seaweedfs, bucket) == {}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"if_exists": "maybe"}, "if_exists must be 'skip', 'replace' or 'fail', got 'maybe'."),
        ({"concurrency": 0}, "concurrency must be a whole number, 1 or more, got 0."),
        ({"concurrency": "many"}, "concurrency must be a whole number, 1 or more, got 'many'."),
        (
            {"max_bytes": 1.5},
            "max_bytes must be a whole number of bytes from 1 to 5368709120 (5 GiB), got 1.5.",
        ),
        ({"max_bytes": 5 * 1024**3 + 1}, "max_bytes must be a whole number of bytes from 1 to 5368709120"),
        ({"s3_key": "{nope}"}, "s3_key has the unknown placeholder '{nope}'."),
        ({"s3_key": "same"}, "s3_key gives file 0 of generation"),
        ({"extra_args": {"Nope": 1}}, "extra_args must contain options of S3's PutObject that may be set"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_invalid_input_is_rejected_with_the_bill_before_any_download(
    simulator, seaweedfs, bucket, generate, transfer, fields, sentence
):
    responses = generate(2)
    for response in responses:
        response["data"][0]["url"] = "http://127.0.0.1:1/never-asked"
    with pytest.raises(errors.InvalidInputError) as error:
        transfer(responses, **fields)
    assert str(error.value).startswith(
        f"2 generations were billed (0.08 USD together) and are not saved. {sentence}"
    )
    assert error.value.generation_ids == tuple(response["id"] for response in responses)
    assert stored(seaweedfs, bucket) == {}


def test_missing_bucket_is_named_in_the_error(generate, transfer):
    with pytest.raises(
        errors.StoreRefusedError,
        match=rf"^{BILL} S3 could not store s3://there-is-none/.*: there is no bucket 'there-is-none'\.$",
    ):
        transfer(generate()[0], s3_bucket="there-is-none", if_exists="replace")


def test_extra_args_reach_the_object_and_are_not_modified(simulator, seaweedfs, bucket, generate, transfer):
    extra_args = {
        "Metadata": {"team": "art"},
        "Tagging": "a=b",
        "CacheControl": "no-cache",
        "ContentType": "image/x",
    }
    given = {**extra_args, "Metadata": {**extra_args["Metadata"]}}
    simulator.settings(file_size=6 * MIB)
    [row] = transfer(generate()[0], extra_args=extra_args)
    head = seaweedfs.client().head_object(Bucket=bucket, Key=row["key"])
    assert extra_args == given
    assert (head["ContentType"], head["CacheControl"], head["Metadata"]["team"]) == (
        "image/x",
        "no-cache",
        "art",
    )
    tags = seaweedfs.client().get_object_tagging(Bucket=bucket, Key=row["key"])["TagSet"]
    assert tags == [{"Key": "a", "Value": "b"}]


class TestDownloadAddress:
    """The base URL is the simulator's, at 127.0.0.1: every other private address is rejected."""

    def refused(self, transfer, response: dict[str, Any], url: str, **fields: Any) -> str:
        response["data"][0]["url"] = url
        with pytest.raises(errors.FileRefusedError) as error:
            transfer(response, **fields)
        return str(error.value)

    @pytest.fixture
    def public(self, monkeypatch) -> str:
        """A connection whose base URL is on the internet."""
        monkeypatch.setenv("AIRFLOW_CONN_PUBLIC", '{"conn_type": "getimg", "host": "https://1.1.1.1"}')
        return "public"

    def test_loopback_is_rejected_if_the_base_url_is_public(self, generate, transfer, public):
        [response] = generate()
        message = self.refused(transfer, response, response["data"][0]["url"], getimg_conn_id=public)
        assert "is the private address 127.0.0.1" in message
        assert "sig=" not in message

    @pytest.fixture
    def elsewhere(self):
        """Yield the URL of a listener on another loopback address, then check that nothing connected to it."""
        with socket.create_server(("127.0.0.2", 0)) as server:
            yield f"http://127.0.0.2:{server.getsockname()[1]}"
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()

    def test_private_address_other_than_the_base_url_is_rejected_without_a_connection(
        self, generate, transfer, elsewhere
    ):
        message = self.refused(transfer, generate()[0], f"{elsewhere}/x?sig=secret")
        assert "is the private address 127.0.0.2" in message

    def test_http_url_is_rejected_if_the_base_url_is_https(self, generate, transfer, public):
        url = "http://example.test/x?sig=secret"
        message = self.refused(transfer, generate()[0], url, getimg_conn_id=public)
        assert message.endswith("The URL http://example.test/x?... is not https: it was not requested.")

    def test_redirect_to_another_private_address_is_rejected_without_a_connection(
        self, simulator, generate, transfer, elsewhere
    ):
        [response] = generate()
        play(simulator, kind="status", status=302, headers={"Location": f"{elsewhere}/inside?sig=secret"})
        message = self.refused(transfer, response, response["data"][0]["url"])
        assert "is the private address 127.0.0.2" in message
        assert "secret" not in message

    def test_redirect_to_the_same_server_is_followed(self, simulator, seaweedfs, bucket, generate, transfer):
        [response] = generate()
        location = response["data"][0]["url"].removeprefix(simulator.url)
        play(simulator, kind="status", status=302, headers={"Location": location})
        transfer(response)
        assert list(stored(seaweedfs, bucket).values()) == [bytes_of(response)]

    def test_private_address_in_an_allowed_network_is_requested(
        self, simulator, seaweedfs, bucket, generate, transfer, monkeypatch
    ):
        [response] = generate()
        content = bytes_of(response)
        extra = {"allowed_networks": ["127.0.0.1/32"]}
        connection = {"conn_type": "getimg", "host": simulator.url, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", json.dumps(connection))
        with RawServer(raw_response(content)) as server:
            response["data"][0]["url"] = f"{server.url}/f"
            transfer(response)
        assert list(stored(seaweedfs, bucket).values()) == [content]

    def test_invalid_host_is_rejected_and_named_in_the_error(self, generate, transfer):
        message = self.refused(transfer, generate()[0], "http://a..b/x?sig=secret")
        assert message.endswith("The URL http://a..b/x?... is invalid: it was not requested.")


def test_time_spent_waiting_for_a_slot_does_not_count_toward_the_timeout(
    simulator, seaweedfs, bucket, generate, transfer, monkeypatch
):
    monkeypatch.setenv(
        "AIRFLOW_CONN_GETIMG_DEFAULT",
        f'{{"conn_type": "getimg", "host": "{simulator.url}", "extra": {{"timeout": 2}}}}',
    )
    responses = generate(4)
    simulator.settings(download_latency=1.2)
    assert len(transfer(responses, concurrency=1)) == 4


def test_on_kill_ends_the_transfer_with_nothing_saved(simulator, seaweedfs, bucket, generate, context):
    simulator.faults.add({"on": "download", "kind": "hang", "seconds": 60, "times": 9})
    operator = TransferToS3Operator(
        task_id="save", generation=generate(6), s3_bucket=bucket, s3_key=KEY, concurrency=2
    )
    timer = threading.Timer(1.0, operator.on_kill)
    timer.start()
    with pytest.raises(
        errors.TransferIncompleteError,
        match=r"^0 of 6 files are saved; the other 6, billed at 0\.24 USD, are not\.",
    ):
        operator.execute(context())
    timer.join()
    assert stored(seaweedfs, bucket) == {}


def test_outlet_events_and_lineage_list_each_object_without_signatures(bucket, generate, context):
    responses = generate(2)
    alias, asset = AssetAlias("pictures"), Asset("s3://somewhere/else")
    operator = TransferToS3Operator(
        task_id="save", generation=responses, s3_bucket=bucket, s3_key=KEY, outlets=[alias, asset]
    )
    surroundings = context()
    rows = operator.execute(surroundings)
    events = surroundings["outlet_events"][alias].asset_alias_events
    assert [event.dest_asset_key.uri for event in events] == [row["uri"] for row in rows]
    assert events[0].extra == {
        "generation_id": responses[0]["id"],
        "index": 0,
        "model": "seedream-5-lite",
        "cost_usd": "0.04",
        "bytes": rows[0]["bytes"],
        "sha256": rows[0]["sha256"],
        "mime_type": "image/jpeg",
    }
    files = surroundings["outlet_events"][asset].extra["files"]
    assert [file["uri"] for file in files] == [row["uri"] for row in rows]
    lineage = operator.get_openlineage_facets_on_complete(None)
    assert [(output.namespace, output.name) for output in lineage.outputs] == [
        (f"s3://{bucket}", row["key"]) for row in rows
    ]
    assert "sig=" not in repr((events, files, lineage))


def console_link(operator: TransferToS3Operator) -> str:
    link = next(link for link in operator.operator_extra_links if isinstance(link, OpenInS3Link))
    return link.get_link(operator, ti_key=None)


def test_s3_compatible_store_has_no_link_to_the_aws_console(bucket, generate, context):
    operator = TransferToS3Operator(task_id="save", generation=generate(), s3_bucket=bucket, s3_key=KEY)
    operator.execute(context())
    assert console_link(operator) == ""


def test_amazon_s3_has_a_link_to_the_aws_console(generate, context, monkeypatch):
    connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": {"region_name": "eu-west-1"}}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    with mock_aws():
        S3Hook().create_bucket("photos")
        operator = TransferToS3Operator(
            task_id="save", generation=generate(), s3_bucket="photos", s3_key="day/1.png"
        )
        operator.execute(context())
    assert console_link(operator) == (
        "https://console.aws.amazon.com/s3/object/photos?prefix=day%2F1.png&region=eu-west-1"
    )


def test_log_warns_if_files_expire_before_the_last_retry(simulator, generate, transfer, capsys):
    simulator.settings(media_lifetime=600)
    transfer(generate()[0])
    assert (
        "3 retries 0:05:00 apart may need 0:15:00: a shorter retry_delay is safer." in capsys.readouterr().out
    )


MEASURED = """
import json, sys
from pathlib import Path
from airflow_provider_getimg.s3 import save_many
from airflow_provider_getimg.links import OpenInS3Link
from airflow_provider_getimg.s3 import copier
from airflow_provider_getimg.s3 import store as s3_store
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

def memory(name):
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(name))) * 1024

operator = TransferToS3Operator(task_id="save", **json.loads(sys.argv[1]))
operator.s3_hook.get_conn()
idle = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # The peak counts from here.
operator.execute({})
print(memory("VmHWM") - idle)
"""


@pytest.mark.parametrize(
    ("size", "count"),
    [
        # The largest files that are kept in memory, and larger ones.
        pytest.param(MEMORY_BYTES, 24, id="in memory"),
        pytest.param(100 * MIB, 8, id="on disk"),
        pytest.param(1024 * MIB, 1, id="1 GiB", marks=pytest.mark.long),
    ],
)
def test_memory_use_is_bounded_regardless_of_file_size(simulator, seaweedfs, bucket, generate, size, count):
    simulator.settings(file_size=size)
    job = {"generation": generate(count), "s3_bucket": bucket, "s3_key": KEY}
    output = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(job)], capture_output=True, text=True, check=True
    ).stdout
    listed = seaweedfs.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert [entry["Size"] for entry in listed] == [size] * count
    assert int(output.splitlines()[-1]) < 200 * MIB
