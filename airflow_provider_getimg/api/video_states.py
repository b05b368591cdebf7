# SPDX-License-Identifier: Apache-2.0
"""Read the states of videos from an event loop: for many triggers, over a few connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx

from airflow_provider_getimg.api import response_body, responses
from airflow_provider_getimg.api.certificates import Certificates
from airflow_provider_getimg.api.errors import GetimgError, UnavailableError
from airflow_provider_getimg.api.proxies import Proxies
from airflow_provider_getimg.api.reading import Reader
from airflow_provider_getimg.api.requests import video_path
from airflow_provider_getimg.api.settings import checked_api_key, mask_urls_in_logs
from airflow_provider_getimg.api.types import Video

if TYPE_CHECKING:
    from airflow_provider_getimg.api.settings import ClientSettings

_TIMEOUT = 30.0
_MAX_BYTES = 1024 * 1024
# Per process: enough to poll a thousand videos every ten seconds.
_CONNECTIONS = 10


class VideoStates:
    """
    Reads the states of videos over connections that are kept and reused: reads are free and safe to repeat.

    Use each instance in one event loop only.

    :param api_key: The account's API key.
    :param settings: How to reach the API.
    :raises ConnectionConfigError: One of these is invalid.
    """

    def __init__(self, api_key: str | None, settings: ClientSettings) -> None:
        key = checked_api_key(api_key)
        self._reader = Reader(settings.base_url, lambda text: responses.redacted(text, key))
        certificates = Certificates().context
        proxy = Proxies(settings.proxy).of(httpx.URL(settings.base_url))
        mask_urls_in_logs()
        self._http = httpx.AsyncClient(
            base_url=settings.base_url,
            headers={
                "Authorization": f"Bearer {key}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            },
            verify=certificates,
            proxy=httpx.Proxy(proxy.url, ssl_context=certificates if proxy.url.startswith("https") else None)
            if proxy is not None
            else None,
            trust_env=False,
            follow_redirects=False,
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def get(self, video_id: str) -> Video:
        """
        Return the state of a video.

        :raises RequestRefusedError: The API refused the request and will refuse it again.
        :raises RateLimitError: Too many requests.
        :raises UnavailableError: Anything else: worth retrying.
        """
        try:
            # This includes the wait for a free connection.
            async with (
                asyncio.timeout(2 * _TIMEOUT),
                self._http.stream("GET", video_path(video_id)) as response,
            ):
                chunks, size = [], 0
                async for chunk in response.aiter_raw():
                    size += len(chunk)
                    if size > _MAX_BYTES:
                        raise UnavailableError(
                            f"The state of video {video_id} has more than {_MAX_BYTES} bytes."
                        )
                    chunks.append(chunk)
            encoding = response.headers.get("content-encoding", "")
            content = response_body.read(iter(chunks), encoding, _MAX_BYTES)
        except GetimgError:
            raise
        except Exception as error:
            # An error from httpx or the socket, a timeout, a body that can't be decompressed: nothing was billed.
            reason = (
                responses.one_line(str(error), 300, self._reader.redact).rstrip(".") or type(error).__name__
            )
            raise UnavailableError(f"The state of video {video_id} could not be read: {reason}.") from None
        if response.status_code != 200:
            raise responses.free_call_error(response, content, self._reader.redact)
        return self._reader.read(Video, response, content, UnavailableError)
