# SPDX-License-Identifier: Apache-2.0
"""The CA certificates that server certificates are verified against."""

from __future__ import annotations

import os
import ssl
import threading

import certifi

from airflow_provider_getimg.api.errors import ConnectionConfigError

# The first one set overrides certifi's bundle. In order: those of OpenSSL and httpx, of requests, and of curl.
_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class Certificates:
    """
    The CA certificates that the worker's environment names, or else those of ``certifi``.

    :raises ConnectionConfigError: An environment variable names a file or folder that can't be used.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._variable = next((name for name in _VARIABLES if os.environ.get(name)), None)
        self._path = os.environ[self._variable] if self._variable else certifi.where()
        # Load configured certificates now, to reject bad ones before anything is sent. certifi's take some
        # milliseconds to load, so they wait for the first https:// request.
        self._context = self._read() if self._variable else None

    def __str__(self) -> str:
        if self._variable is None:
            return f"{self._path}; SSL_CERT_FILE or REQUESTS_CA_BUNDLE can name another file"
        return f"{self._variable}={self._path}"

    @property
    def context(self) -> ssl.SSLContext:
        """The SSL context for all connections of a client."""
        with self._lock:
            if self._context is None:
                self._context = self._read()
            return self._context

    def _read(self) -> ssl.SSLContext:
        is_folder = self._variable == "SSL_CERT_DIR" or os.path.isdir(self._path)
        try:
            if not is_folder:
                return ssl.create_default_context(cafile=self._path)
            # OpenSSL accepts several folders and ignores those that don't exist.
            if any(map(os.path.isdir, self._path.split(os.pathsep))):
                return ssl.create_default_context(capath=self._path)
            why = "there is no such folder"
        except ssl.SSLError:
            why = "no certificate can be read from it"
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
        raise ConnectionConfigError(
            f"{self._variable or 'certifi'} must name {'a folder' if is_folder else 'a file'} of certificates in PEM "
            f"format, got {self._path!r}: {why}."
        )
