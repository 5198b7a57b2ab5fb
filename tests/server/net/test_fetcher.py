"""What the server fetches for its users, and what it doesn't."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiohttp import web

from fabric_server.net.egress import Forbidden
from fabric_server.net.fetcher import MAX_LOOK_UPS, Fetcher, FetchError
from fabric_server.pki.ca import Authority
from tests.media_server import PNG, MediaServer, Names, loopback_only, page
from tests.trust import server_papers


@pytest.fixture
async def server() -> AsyncIterator[MediaServer]:
    async with MediaServer() as server:
        yield server


def fetcher(names: Names | None = None) -> Fetcher:
    return Fetcher(names or Names(["127.0.0.1"]), loopback_only)


async def get(url: str, names: Names | None = None, limit: int = 1000) -> bytes:
    taken = 0

    def take(size: int) -> None:
        nonlocal taken
        taken += size
        if taken > limit:
            raise FetchError("too much")

    return b"".join((await fetcher(names).get(url, "key", take)).chunks)


async def test_a_url_is_fetched_with_nothing_of_the_servers_in_it(server: MediaServer) -> None:
    assert await get(server.url("/a.png?a=b%20c&d#fragment")) == PNG
    (request,) = server.asked
    assert request.method == "GET"
    assert request.raw_path == "/a.png?a=b%20c&d"
    assert {name.lower() for name in request.headers} == {
        *("host", "user-agent", "accept", "accept-encoding", "connection"),
    }
    assert request.headers["accept-encoding"] == "identity"


async def test_a_path_beyond_ascii_is_escaped(server: MediaServer) -> None:
    server.pages["/Grüße.png"] = server.pages["/a.png"]
    assert await get(server.url("/Grüße.png")) == PNG


async def test_the_connection_goes_to_the_address_that_was_checked(server: MediaServer) -> None:
    names = Names(["127.0.0.1"], ["192.168.1.1"])  # as a name server does that rebinds
    assert await get(server.url(host="a.example"), names) == PNG
    assert names.asked == ["a.example"]
    assert server.asked[0].headers["host"] == f"a.example:{server.port}"


async def test_each_redirect_is_looked_up_and_checked_anew(server: MediaServer) -> None:
    names = Names(["127.0.0.1"], ["192.168.1.1"])
    server.redirect("/to", "/a.png")
    with pytest.raises(Forbidden, match="is not an address of the public internet"):
        await get(server.url("/to", "a.example"), names)
    assert [request.path for request in server.asked] == ["/to"]


@pytest.mark.parametrize(
    "to",
    [
        *("http://192.168.1.1/", "//192.168.1.1/", "http://[::1]/", "http://[::ffff:10.0.0.1]/"),
        *("file:///etc/passwd", "ftp://127.0.0.1/", "http://127.1/", "http://2130706433/"),
        *("http://127.0.0.2/", "http://user@127.0.0.1/", "http://127.0.0.1:22/", "gopher://a/"),
        *("http://169.254.169.254/latest/meta-data/", "http://0/", "http://127.0.0.1./"),
    ],
)
async def test_redirects_lead_to_the_world_only(server: MediaServer, to: str) -> None:
    server.redirect("/to", to)
    with pytest.raises((Forbidden, FetchError)):
        await get(server.url("/to"))
    assert len(server.asked) == 1


async def test_redirects_are_followed_three_times(server: MediaServer) -> None:
    for step in range(5):
        server.redirect(f"/{step}", f"{step + 1}")
    server.redirect("/5", "/a.png")
    assert await get(server.url("/3")) == PNG
    with pytest.raises(FetchError, match="more than 3"):
        await get(server.url("/2"))


async def test_what_is_too_large_is_not_read(server: MediaServer) -> None:
    with pytest.raises(FetchError, match="too much"):
        await get(server.url(), limit=len(PNG) - 1)
    assert await get(server.url(), limit=len(PNG)) == PNG

    async def body() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1000)

    server.pages["/endless"] = lambda: web.Response(body=body())
    with pytest.raises(FetchError, match="too much"):
        await get(server.url("/endless"), limit=10_000)


async def test_answers_that_are_no_media_are_errors(server: MediaServer) -> None:
    server.pages["/zip"] = lambda: page(b"\x1f\x8b", "image/png", **{"content-encoding": "gzip"})
    for path, words in (("/none", "status 404"), ("/zip", "compressed")):
        with pytest.raises(FetchError, match=words):
            await get(server.url(path))


async def test_a_server_that_is_no_web_server_is_an_error() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp\r\n" * 10)
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    async with other:
        with pytest.raises(FetchError):
            await get(f"http://127.0.0.1:{port}/")
    with pytest.raises(FetchError):
        await get(f"http://127.0.0.1:{port}/")


async def test_tls_verifies_the_name(tmp_path: Path) -> None:
    now = time.time()
    authority = Authority.make(now)
    papers = server_papers(authority, tmp_path, "localhost", now=now)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(papers.certificate, papers.key)
    trust = ssl.create_default_context(cadata=authority.pem)
    async with MediaServer(tls=tls) as server:
        trusting = Fetcher(Names(["127.0.0.1"]), loopback_only, trust=trust)
        found = await trusting.get(server.url(host="localhost"), "key", lambda size: None)
        assert b"".join(found.chunks) == PNG
        for url in (server.url(host="other.example"), server.url(host="127.0.0.1")):
            with pytest.raises(FetchError, match="certificate"):
                await trusting.get(url, "key", lambda size: None)
        public_cas_only = Fetcher(Names(["127.0.0.1"]), loopback_only)
        with pytest.raises(FetchError, match="certificate"):
            await public_cas_only.get(server.url(host="localhost"), "key", lambda size: None)


async def test_slow_look_ups_are_bounded_for_each_key() -> None:
    """A look-up runs on when nobody waits for it any more, so that it still counts."""
    answered = asyncio.Event()

    async def slow(host: str, port: int) -> Sequence[str]:  # a fake of a slow name server
        await answered.wait()
        return ["192.168.1.1"]

    fetcher = Fetcher(slow)

    async def one(key: str) -> None:
        await fetcher.get("http://a.example/", key, lambda size: None)

    waiting = [asyncio.create_task(one("key")) for _ in range(MAX_LOOK_UPS)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    with pytest.raises(FetchError, match="too many slow host names"):
        await one("key")
    other = asyncio.create_task(one("other"))
    await asyncio.sleep(0)
    answered.set()
    with pytest.raises(Forbidden):
        await other
    with pytest.raises(Forbidden):
        await one("key")
