"""A web server on loopback that holds media, and what else a URL may lead to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Self

from aiohttp import web

from fabric_server.net.special_addresses import is_public

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
WAV = b"RIFF\x24\0\0\0WAVEfmt " + bytes(32)
PDF = b"%PDF-1.7\n"


def loopback_only(address: str) -> bool:
    """Allow 127.0.0.1 for the server of these tests, and of all others what a server allows."""
    return address == "127.0.0.1" or is_public(address)


class Names:
    """A fake of the system's look-up: names that no name server knows."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        """What each look-up finds, in turn; the last one stays."""
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class MediaServer:
    """Answers each path by the function that ``pages`` has for it."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.pages: dict[str, Callable[[], web.StreamResponse]] = {
            "/a.png": lambda: page(PNG, "image/png"),
            "/a.wav": lambda: page(WAV, "audio/x-wav"),
            "/a.pdf": lambda: page(PDF, "application/pdf"),
            "/a.txt": lambda: page("Grüße".encode(), "text/plain; charset=utf-8"),
            "/bare.png": lambda: page(PNG, "application/octet-stream"),
            "/page": lambda: page(b"<html>secret</html>", "text/html"),
            "/lie.png": lambda: page(b"<html>secret</html>", "image/png"),
            "/truth.html": lambda: page(PNG, "text/html"),
            "/a.svg": lambda: page(b"<svg/>", "image/svg+xml"),
            "/list.m3u8": lambda: page(b"#EXTM3U\nhttp://192.168.1.1/", "video/mp4"),
            "/secret": lambda: page(PNG, "image/png"),
        }
        self.asked: list[web.Request] = []
        self.at_once = 0
        self.most_at_once = 0
        self.wait: asyncio.Event | None = None
        """Answers come when it is set."""
        self.port = 0
        self._tls = tls

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    def url(self, path: str = "/a.png", host: str = "127.0.0.1") -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    def redirect(self, path: str, to: str) -> None:
        self.pages[path] = lambda: web.Response(status=302, headers={"location": to})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.wait is not None:
                await self.wait.wait()
            found = self.pages.get(request.path)
            return found() if found is not None else web.Response(status=404)
        finally:
            self.at_once -= 1


def page(data: bytes, type: str, **headers: str) -> web.Response:
    return web.Response(body=data, headers={"content-type": type, **headers})
