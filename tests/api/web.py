"""Two loopback servers that stand for all addresses, and patches that connect to them instead of the internet."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

from PIL import Image

PUBLIC = "93.184.216.34"
Answer = tuple[int, Mapping[str, str], bytes]


def picture_bytes(size: tuple[int, int] = (64, 48), picture_format: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=picture_format)
    return buffer.getvalue()


@dataclass
class LocalServer:
    """Answers GET with ``answer``, by default a picture, and records the requests."""

    host: str = "127.0.0.1"
    answer: Callable[[str], Answer] = lambda path: (200, {}, picture_bytes())
    seen: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    port: int = 0


@contextlib.contextmanager
def serving(server: LocalServer) -> Iterator[LocalServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.seen.append((self.path, dict(self.headers)))
            status, headers, body = server.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # a client that has read enough hangs up
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Log nothing."""

    listener = ThreadingHTTPServer((server.host, 0), Handler)
    server.port = listener.server_port
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


@dataclass
class Web:
    """``public`` answers for PUBLIC, ``canary`` for every other address; ``names`` has all names that DNS knows.

    Each answer for a name is given once, in turn; the last one is repeated.
    """

    public: LocalServer
    canary: LocalServer
    names: dict[str, list[Sequence[str]]]

    def install(self, monkeypatch: Any) -> None:
        resolve = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
            name = str(host).rstrip(".").lower()
            if name not in self.names:
                if not name or not (name[0].isdigit() or ":" in name):
                    raise socket.gaierror(socket.EAI_NONAME, "no such name")
                return resolve(host, port, *args, **kwargs)  # a number in any notation needs no DNS
            answers = self.names[name]
            addresses = answers.pop(0) if len(answers) > 1 else answers[0]
            return [info for address in addresses for info in resolve(address, port, *args, **kwargs)]

        async def connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: tuple[Any, ...]) -> None:
            server = self.public if ip_address(address[0]) == ip_address(PUBLIC) else self.canary
            host = server.host if sock.family == socket.AF_INET else f"::ffff:{server.host}"
            sock.setblocking(True)
            sock.connect((host, server.port))
            sock.setblocking(False)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", connect)
