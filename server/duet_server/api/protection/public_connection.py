"""vLLM's HTTP client, which connects only to allowed addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import aiohttp
import requests
from vllm.connections import HTTPConnection

from duet_server.api.option_types import Network
from duet_server.api.protection.public_addresses import NotPublicError, checked_socket


class PublicConnection(HTTPConnection):
    """Checks the final address of every connection, after name resolution and after each redirect.

    It uses no proxy, no ``.netrc`` and no cookies, and does not decompress responses.

    Args:
        networks: allowed in addition to public addresses.
        domains: if not empty, the only allowed hosts, also for redirects.
    """

    def __init__(self, networks: Sequence[Network], domains: Sequence[str]) -> None:
        super().__init__()
        self.networks = networks
        self.domains = domains
        self._async_client: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the loop of the session

    async def get_async_client(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._async_client is None or self._loop is not loop:
            self._loop = loop
            connector = aiohttp.TCPConnector(
                socket_factory=partial(checked_socket, allowed=self.networks),
                happy_eyeballs_delay=None,  # with a delay, the factory's exception would be lost
            )
            self._async_client = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,
                middlewares=(self._check_host,),
            )
        return self._async_client

    def get_sync_client(self) -> requests.Session:
        raise NotImplementedError("requests would connect to any address")

    def get_bytes(self, url: str, **kwargs: Any) -> bytes:
        """Like ``async_get_bytes``, with its own session and event loop."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._get_alone(url, **kwargs)).result()

    async def _get_alone(self, url: str, **kwargs: Any) -> bytes:
        alone = PublicConnection(self.networks, self.domains)
        try:
            return bytes(await alone.async_get_bytes(url, **kwargs))
        finally:
            await (await alone.get_async_client()).close()

    async def _check_host(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self.domains and request.url.host not in self.domains:
            raise NotPublicError
        return await handler(request)
