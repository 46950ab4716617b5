"""Pictures that clients send or link to: vLLM's media connector with caps, checks and clear error messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import aiohttp
from PIL import Image
from vllm.connections import (
    HTTPConnection,
    HTTPResponseSizeExceededError,
    MediaDownloadSizeExceededError,
    global_http_connection,
)
from vllm.exceptions import VLLMError, VLLMUnprocessableEntityError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, ImageMediaIO, MediaConnector, MediaIO
from vllm.multimodal.media.base import MediaWithBytes
from vllm.multimodal.media.connector import MODALITY_IO_MAP

from duet_server.api.errors import MediaFetchError, Refusal, RequestRefusedError
from duet_server.api.option_types import Network
from duet_server.api.options import ServerOptions
from duet_server.api.protection.data_urls import DataUrlError, decode_base64, split_data_url
from duet_server.api.protection.pictures import read_picture
from duet_server.api.protection.public_addresses import NotPublicError
from duet_server.api.protection.public_connection import PublicConnection
from duet_server.plan.errors import Words

CONNECTOR = "http"  # the name of vLLM's own connector, the default of VLLM_MEDIA_CONNECTOR
_TOO_LARGE = (HTTPResponseSizeExceededError, MediaDownloadSizeExceededError)
_EXPECTED = (NotPublicError, VLLMError, aiohttp.ClientError, OSError, ValueError, RuntimeError)


def register_connector(options: ServerOptions) -> None:
    """Make every route of this process load its media under the options' limits."""
    MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)(cast(Any, partial(DuetMediaConnector, options)))


class DuetMediaConnector(MediaConnector):
    """vLLM's media connector with the limits of ``options``. All other arguments are vLLM's."""

    def __init__(self, options: ServerOptions, media_io_kwargs: Any = None, **kwargs: Any) -> None:
        super().__init__(media_io_kwargs, **kwargs)
        self.options = options
        self.connection = _connection(options, self.allowed_media_domains)

    def load_from_url(self, url: str, media_io: MediaIO[Any], **kwargs: Any) -> Any:
        with self._explaining(url, media_io):
            return super().load_from_url(url, self._checked(media_io), **kwargs)

    async def load_from_url_async(self, url: str, media_io: MediaIO[Any], **kwargs: Any) -> Any:
        with self._explaining(url, media_io):
            return await super().load_from_url_async(url, self._checked(media_io), **kwargs)

    def _load_data_url(self, url: str, media_io: CappedIO) -> Any:
        cap = self.options.media_max_data_url
        if cap is not None and len(url) > cap:
            value = Words(f"a data URL of {len(url)} characters")
            raise RequestRefusedError("media", _field(media_io.reader), value, f"at most {cap} characters")
        return media_io.load_base64(*split_data_url(url))

    def _checked(self, media_io: MediaIO[Any]) -> CappedIO:
        if isinstance(media_io, ImageMediaIO):
            return PictureIO(media_io, self.options)
        return CappedIO(media_io, self.options)

    @contextmanager
    def _explaining(self, url: str, media_io: MediaIO[Any]) -> Iterator[None]:
        try:
            yield
        except RequestRefusedError as error:
            error.source = url
            raise
        except _EXPECTED as error:
            refusal = self._explained(url, media_io, error)
            refusal.source = url
            raise refusal from error

    def _explained(self, url: str, media_io: MediaIO[Any], error: Exception) -> Refusal:
        """The error for the client. It contains nothing that the client has not sent."""
        field = _field(media_io)
        if isinstance(error, DataUrlError):
            return RequestRefusedError("media", field, error.value, error.expected)
        if isinstance(error, NotPublicError):
            return RequestRefusedError("media", field, url, "a URL of a public host")
        if isinstance(error.__cause__ or error, _TOO_LARGE):
            cap = self._checked(media_io).get_max_bytes()
            return RequestRefusedError("media", field, url, f"a download of at most {cap} bytes")
        if isinstance(error, VLLMUnprocessableEntityError | aiohttp.ClientError | OSError):
            return MediaFetchError(field, url)
        expected = "an http or https URL of an allowed host, or data:image/png;base64, followed by base64"
        return RequestRefusedError("media", field, url, expected)


class CappedIO(MediaIO[Any]):
    """vLLM's reader of one kind of media, with a cap on downloads."""

    def __init__(self, reader: MediaIO[Any], options: ServerOptions) -> None:
        self.reader = reader
        self.options = options

    def get_max_bytes(self) -> int | None:
        caps = [cap for cap in (self.reader.get_max_bytes(), self.options.media_max_download) if cap is not None]
        return min(caps, default=None)

    def load_bytes(self, data: bytes) -> Any:
        return self.reader.load_bytes(data)

    def load_base64(self, media_type: str, data: str) -> Any:
        return self.reader.load_base64(media_type, data)

    def load_file(self, filepath: Path) -> Any:
        return self.reader.load_file(filepath)


class PictureIO(CappedIO):
    """Reads pictures in place of vLLM's reader, as that one is set up."""

    reader: ImageMediaIO

    def load_bytes(self, data: bytes) -> MediaWithBytes[Image.Image]:
        return read_picture(data, self.reader, self.options)

    def load_base64(self, media_type: str, data: str) -> MediaWithBytes[Image.Image]:
        return self.load_bytes(decode_base64(data))

    def load_file(self, filepath: Path) -> MediaWithBytes[Image.Image]:
        return self.load_bytes(filepath.read_bytes())


def _connection(options: ServerOptions, domains: Sequence[str]) -> HTTPConnection:
    if not options.media_public_only:
        return global_http_connection
    return _public_connection(options.media_allow_networks, tuple(domains))


@cache
def _public_connection(networks: tuple[Network, ...], domains: tuple[str, ...]) -> PublicConnection:
    return PublicConnection(networks, domains)  # one for all requests, to reuse its open connections


def _field(media_io: MediaIO[Any]) -> str:
    return next(f"{modality}_url" for modality, reader in MODALITY_IO_MAP.items() if isinstance(media_io, reader))
