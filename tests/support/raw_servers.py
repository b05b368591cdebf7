# SPDX-License-Identifier: Apache-2.0
"""Minimal HTTP servers for tests: one that returns fixed bytes, and a proxy."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from pathlib import Path


def response(
    body: bytes = b"", *headers: str | bytes, status: str = "200 OK", length: int | None = None
) -> bytes:
    """Return an HTTP response as bytes."""
    lines = [header.encode() if isinstance(header, str) else header for header in headers]
    size = len(body) if length is None else length
    head = [f"HTTP/1.1 {status}".encode(), *lines, b"Content-Length: %d" % size, b"Connection: close"]
    return b"\r\n".join([*head, b"", body])


class _Server:
    """Accepts connections on loopback, each in its own thread."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        #: The head of each request, as received.
        self.heads: list[str] = []
        #: The number of accepted connections.
        self.visits = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = self._socket.accept()
                self.visits += 1
                threading.Thread(target=self._meet, args=(visitor,), daemon=True).start()

    def _meet(self, visitor: socket.socket) -> None:
        with contextlib.suppress(OSError), visitor:
            self.serve(visitor)

    def serve(self, visitor: socket.socket) -> None:
        raise NotImplementedError

    def read(self, visitor: socket.socket) -> tuple[str, bytes]:
        """Read a request, and return its head and its body."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += (chunk := visitor.recv(65536))
            if not chunk:
                raise OSError("no request came")
        head, _, body = received.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        while len(body) < length:
            body += visitor.recv(65536)
        self.heads.append(head.decode("latin-1"))
        return self.heads[-1], body


class RawServer(_Server):
    """
    Responds to each request with the same bytes.

    :param certificate: The PEM file with the certificate and key for TLS. Default: no TLS.
    """

    def __init__(self, response: bytes, certificate: Path | None = None) -> None:
        super().__init__()
        self.response = response
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def serve(self, visitor: socket.socket) -> None:
        if self._tls is not None:
            visitor = self._tls.wrap_socket(visitor, server_side=True)
        self.read(visitor)
        visitor.sendall(self.response)


class Proxy(_Server):
    """
    Accepts CONNECT and absolute URLs, and connects all of them to one server, or responds itself.

    :param port: The server's port on loopback, for every host.
    :param refusal: The response that it sends instead of connecting.
    """

    def __init__(self, port: int = 0, refusal: bytes | None = None) -> None:
        super().__init__()
        self._leads_to = port
        self._refusal = refusal

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def serve(self, visitor: socket.socket) -> None:
        head, body = self.read(visitor)
        if self._refusal is not None:
            visitor.sendall(self._refusal)
            return
        with socket.create_connection(("127.0.0.1", self._leads_to)) as server:
            if head.startswith("CONNECT "):
                visitor.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_pump, args=(server, visitor), daemon=True)
                back.start()
                _pump(visitor, server)
                back.join(10)
            else:
                method, url, _ = head.partition("\r\n")[0].split(" ")
                path = "/" + url.split("/", 3)[3]
                server.sendall(
                    f"{method} {path} HTTP/1.1\r\n{head.partition(chr(10))[2]}\r\n\r\n".encode("latin-1")
                    + body
                )
                _pump(server, visitor)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def write_certificate(path: Path, *names: str) -> Path:
    """Write a self-signed certificate for names and addresses, and its key, into one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    alternatives: list[Any] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path
