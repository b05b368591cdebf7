# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import hashlib
import os
import random
import subprocess
import sys
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_getimg.api.errors import DownloadError
from airflow_provider_getimg.api.media import HEAD_BYTES
from airflow_provider_getimg.s3 import spool as spool_module
from airflow_provider_getimg.s3.spool import MEMORY_BYTES, Spool, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable

MIB = 1024 * 1024
PICTURE = b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(3 * MIB)


def spooled(content: bytes, max_bytes: int = 2**40, chunk: int = 100_000) -> Spool:
    return filled((content[start : start + chunk] for start in range(0, len(content), chunk)), max_bytes)


def filled(chunks: Iterable[bytes], max_bytes: int = 2**40) -> Spool:
    spool = Spool("file 0 of generation a", max_bytes)
    for chunk in chunks:
        spool.write(chunk)
    spool.seal()
    return spool


def content_of(spool: Spool) -> bytes:
    body = spool.body()
    return body if isinstance(body, bytes) else body.read()


@pytest.mark.parametrize(
    ("size", "is_in_memory"),
    [(0, True), (1, True), (MEMORY_BYTES, True), (MEMORY_BYTES + 1, False), (3 * MEMORY_BYTES, False)],
)
def test_spool_returns_the_written_bytes_from_memory_or_disk(size, is_in_memory):
    content = random.Random(size).randbytes(size)
    with spooled(content) as spool:
        assert isinstance(spool.body(), bytes) is is_in_memory
        # boto3 may read the file more than once.
        assert content_of(spool) == content_of(spool) == spool.file().read() == content
        assert (spool.size, spool.sha256) == (size, hashlib.sha256(content).hexdigest())
        assert spool.head == content[:HEAD_BYTES]


@given(chunks=st.lists(st.binary(max_size=2 * HEAD_BYTES), max_size=5))
def test_head_does_not_depend_on_the_chunk_sizes(chunks):
    with filled(chunks) as spool:
        assert spool.head == b"".join(chunks)[:HEAD_BYTES]


def test_file_in_memory_is_not_copied():
    content = random.Random(0).randbytes(MEMORY_BYTES)
    tracemalloc.start()
    try:
        with spooled(content) as spool:
            spool.body()
            kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1.3 * MEMORY_BYTES


@pytest.mark.parametrize("size", [MEMORY_BYTES, 3 * MEMORY_BYTES], ids=["in memory", "on disk"])
def test_write_beyond_the_size_limit_is_rejected_at_once(size):
    with spooled(b"x" * size, max_bytes=size) as spool, pytest.raises(TooLargeError):
        spool.write(b"x")


@pytest.mark.parametrize("size", [10, 2 * MEMORY_BYTES], ids=["in memory", "on disk"])
def test_close_leaves_no_open_file_and_is_idempotent(size):
    open_before = len(os.listdir("/proc/self/fd"))
    spool = spooled(b"x" * size)
    spool.close()
    spool.close()
    assert len(os.listdir("/proc/self/fd")) == open_before


class TestCompression:
    @pytest.mark.parametrize(
        "compressed",
        [
            gzip.compress(PICTURE),
            gzip.compress(PICTURE, compresslevel=0),
            gzip.compress(PICTURE[:5]) + gzip.compress(PICTURE[5:]),
            gzip.compress(PICTURE) + b"\0" * 700,
        ],
        ids=["gzip", "stored", "two members", "padded"],
    )
    @pytest.mark.parametrize("chunk", [7_777, MIB])
    def test_gzip_is_decompressed(self, compressed, chunk):
        with spooled(compressed, chunk=chunk).decoded() as plain:
            assert content_of(plain) == PICTURE
            assert plain.head == PICTURE[:HEAD_BYTES]
            assert plain.sha256 == hashlib.sha256(PICTURE).hexdigest()

    def test_double_gzip_is_decompressed_in_two_steps(self):
        with spooled(gzip.compress(gzip.compress(PICTURE))).decoded().decoded() as plain:
            assert content_of(plain) == PICTURE

    @pytest.mark.parametrize("window", [zlib.MAX_WBITS, -zlib.MAX_WBITS], ids=["with header", "raw"])
    def test_deflate_is_decompressed_only_if_it_is_labeled(self, window):
        packer = zlib.compressobj(wbits=window)
        compressed = packer.compress(PICTURE) + packer.flush()
        with spooled(compressed).decoded(is_deflate=True) as plain:
            assert content_of(plain) == PICTURE
        with spooled(compressed) as spool:
            assert spool.decoded() is spool

    @pytest.mark.parametrize(
        "content", [PICTURE, b"", b"<html>", b"\x1f", b"\x1f\x8b"], ids=lambda c: str(c[:9])
    )
    @pytest.mark.parametrize("is_deflate", [False, True])
    def test_uncompressed_content_is_returned_unchanged(self, content, is_deflate):
        with spooled(content) as spool:
            assert spool.decoded(is_deflate=is_deflate) is spool
            assert content_of(spool) == content

    @pytest.mark.parametrize(
        "broken",
        [
            gzip.compress(PICTURE)[:-1],
            gzip.compress(PICTURE)[:1000],
            gzip.compress(PICTURE)[:3],
            gzip.compress(PICTURE)[:-8] + b"\0" * 8,
            b"\x1f\x8b\x08" + b"\xff" * 100,
        ],
        ids=["last byte missing", "cut off", "begun", "wrong checksum", "no gzip"],
    )
    def test_broken_gzip_raises_a_download_error(self, broken):
        spool = spooled(broken)
        with pytest.raises(
            DownloadError, match=r"^The download of file 0 .* is compressed and can't be decompressed\.$"
        ):
            spool.decoded()
        spool.close()

    @pytest.mark.parametrize("layers", [1, 2])
    def test_decompression_stops_at_the_size_limit_with_bounded_memory(self, layers):
        bomb = b"".join(_zeros(200 * MIB))
        if layers == 2:
            bomb = gzip.compress(bomb)
        tracemalloc.start()
        try:
            with pytest.raises(TooLargeError):
                spooled(bomb, max_bytes=20 * MIB).decoded().decoded()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 20 * MIB


def _zeros(size: int) -> Iterable[bytes]:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    for _ in range(size // MIB):
        yield packer.compress(b"\0" * MIB)
    yield packer.flush()


class TestDiskError:
    # A limit on the size of one file stands in for a full disk.
    LIMITED = """
import resource, signal, sys
from airflow_provider_getimg.api.errors import DownloadError
from airflow_provider_getimg.s3.spool import MEMORY_BYTES, Spool

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
spool = Spool("file 0 of generation a", 2**40)
spool.write(b"x" * MEMORY_BYTES)
try:
    for _ in range(20):
        spool.write(b"x" * 1_000_000)
    spool.seal()
except DownloadError as error:
    print(error)
spool.close()
spool.close()
"""

    @pytest.mark.parametrize("limit", [0, 1000, 2 * MEMORY_BYTES, MEMORY_BYTES + 20_000_000 - 1])
    def test_full_disk_error_names_the_folder_and_the_remedies(self, limit, tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", self.LIMITED, str(limit)],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        assert done.stdout.startswith(
            f"The download of file 0 of generation a could not be buffered in the worker's {tmp_path} ("
        )
        assert "). Free space there, point TMPDIR to a larger disk, or lower the concurrency." in done.stdout
        assert done.stdout.count("\n") == 1

    def test_worker_without_a_temporary_folder_raises_a_download_error(self, monkeypatch, tmp_path):
        monkeypatch.setattr(spool_module.tempfile, "tempdir", None)
        monkeypatch.setattr(
            spool_module.tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")]
        )
        monkeypatch.delenv("TMPDIR", raising=False)
        with (
            spooled(b"x" * MEMORY_BYTES) as spool,
            pytest.raises(
                DownloadError,
                match=r"in the worker's temporary folder \(No usable temporary directory found in",
            ),
        ):
            spool.write(b"x")
