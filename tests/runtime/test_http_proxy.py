"""Connections through an HTTP proxy: which one, how it is asked, and each way it fails."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.http_proxy import HttpProxy, Proxies, ProxyError, open_streams, parse
from tests.connect_proxy import ConnectProxy
from tests.loops import on_both_loops
from tests.runtime.test_connecting import silent_port
from tests.server.net.ports import Trust, listening, port
from tests.trust import client_context, server_papers


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(tmp_path)


# ── which proxy ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("http://proxy:3128", "proxy", 3128, False),
        ("proxy.corp:8080", "proxy.corp", 8080, False),
        ("http://proxy/", "proxy", 80, False),
        ("https://proxy", "proxy", 443, True),
        ("HTTP://[2001:db8::1]:3128", "2001:db8::1", 3128, False),
        ("http://a%40b:p%3Aw%2F@proxy:1", "proxy", 1, False),
    ],
)
def test_a_proxys_address_is_read(url: str, host: str, port: int, tls: bool) -> None:
    proxy = parse(url, "HTTPS_PROXY")
    assert (proxy.host, proxy.port, proxy.tls) == (host, port, tls)


def test_user_and_password_are_sent_and_shown_nowhere() -> None:
    proxy = parse("http://a%40b:geheim%2F@proxy:1", "proxy")
    assert proxy.authorization == "Basic YUBiOmdlaGVpbS8="
    assert "geheim" not in f"{proxy} {proxy!r}" and "YUBi" not in repr(proxy)


@pytest.mark.parametrize(
    "text",
    [
        "socks5://u:geheim@proxy:1080",
        "http://u:geheim@",
        "http://u:geheim@proxy:port",
        "http://u:geheim@proxy:99999",
        "http://u:geheim@pro xy:1",
        "http://u:geheim@proxy:1/path",
        "http://[u:geheim@proxy",
    ],
)
def test_what_is_no_proxy_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match="HTTPS_PROXY names ") as caught:
        parse(text, "HTTPS_PROXY")
    assert "geheim" not in str(caught.value)


def test_the_setting_decides_then_the_environment() -> None:
    environ = {"HTTPS_PROXY": "http://big:1", "https_proxy": "http://small:1", "no_proxy": "*"}
    assert Proxies.of("none", environ).for_host("a", 1) is None
    assert str(Proxies.of("http://own:2", environ).for_host("a", 1)) == "own:2"
    assert Proxies.of("", environ).for_host("a", 1) is None
    small = Proxies.of("", {**environ, "no_proxy": ""}).for_host("a", 1)
    assert small is not None and (str(small), small.source) == ("small:1", "https_proxy")
    assert Proxies.of("", {"HTTP_PROXY": "http://other:1"}).for_host("a", 1) is None


@pytest.mark.parametrize(
    ("no_proxy", "direct", "proxied"),
    [
        ("", ["localhost", "127.3.4.5", "::1"], ["example.org", "10.0.0.1"]),
        ("*", ["example.org", "10.0.0.1"], []),
        ("example.org", ["example.org", "GPU.example.org."], ["notexample.org", "example.com"]),
        (".example.org, x", ["example.org", "gpu.example.org", "x"], ["xx", "org"]),
        ("*.example.org", ["gpu.example.org"], ["anexample.org"]),
        ("10.0.0.0/8,2001:db8::/32", ["10.9.8.7", "2001:db8::5"], ["11.0.0.1", "2001:db9::1"]),
        ("192.0.2.7", ["192.0.2.7"], ["192.0.2.70"]),
        ("example.org:443,[2001:db8::1]:443", ["example.org", "2001:db8::1"], ["example.com"]),
        ("example.org:80,[::2]:80", [], ["example.org", "::2"]),
        (",, ,.", [], ["example.org"]),
    ],
)
def test_no_proxy_is_honoured(no_proxy: str, direct: list[str], proxied: list[str]) -> None:
    proxies = Proxies.of("", {"HTTPS_PROXY": "proxy:1", "NO_PROXY": no_proxy})
    assert [one for one in direct if proxies.for_host(one, 443) is not None] == []
    assert [one for one in proxied if proxies.for_host(one, 443) is None] == []


# ── the way through ───────────────────────────────────────────────────────────────────────────


async def talk(
    trust: Trust, proxy: HttpProxy, address: tuple[str, int], words: bytes = b"hello"
) -> None:
    reader, writer = await open_streams(
        address, proxy=proxy, tls=client_context(trust.ca), server_hostname="server.fabric"
    )
    writer.write(words)
    assert await asyncio.wait_for(reader.readexactly(len(words)), 10) == words
    writer.transport.abort()


@on_both_loops
@pytest.mark.parametrize("encrypted", [False, True])
async def test_bytes_pass_both_ways_with_tls_inside(
    trust: Trust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(trust.own.ca))
    tls = own_tls(trust, tmp_path) if encrypted else None
    async with (
        listening(port(trust)) as listener,
        ConnectProxy(login="alice:secret", tls=tls) as through,
    ):
        address = "127.0.0.1", listener.port
        await talk(trust, parse(through.url, "proxy"), address, b"x" * 300_000)
        assert through.asked == [f"127.0.0.1:{listener.port}"]


async def test_a_proxy_whose_certificate_is_not_trusted_is_not_told_the_password(
    trust: Trust, tmp_path: Path
) -> None:
    async with ConnectProxy(login="alice:secret", tls=own_tls(trust, tmp_path)) as through:
        error = await refusal(parse(through.url, "proxy"))
        assert error.code == "proxy_away"
        assert "TLS failed, certificate verify failed" in str(error)
        assert through.asked == []


def own_tls(trust: Trust, directory: Path) -> ssl.SSLContext:
    papers = server_papers(trust.own.authority, directory, "localhost", now=time.time())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(papers.certificate, papers.key)
    return tls


@on_both_loops
@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", "proxy_login", "a user"),
        (b"HTTP/1.1 407 x\r\nproxy-authenticate: NTLM\r\n\r\n", "proxy_login", "cntlm"),
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n<html>", "proxy_login", "(401)"),
        (b"HTTP/1.0 403 Forbidden\r\n\r\n<html>", "proxy_refuses", "port 443"),
        (b"HTTP/1.1 302 Found\r\nlocation: https://login\r\n\r\n", "proxy_refuses", "(302)"),
        (b"HTTP/1.1 503 x\r\n\r\n", "proxy_no_way", "can't reach 192.0.2.1:443"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "proxy_wrong", "no HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03", "proxy_wrong", "no HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000, "proxy_wrong", "no HTTP proxy"),
        (b"\0" * 100_000, "proxy_wrong", "no HTTP proxy"),
    ],
)
async def test_each_refusal_says_what_to_do(answer: bytes, code: str, said: str) -> None:
    async with ConnectProxy(answer=answer) as through:
        error = await refusal(parse(f"http://{through.url[7:]}", "HTTPS_PROXY"))
        assert error.code == code
        assert said in str(error)


async def refusal(proxy: HttpProxy) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        await open_streams(("192.0.2.1", 443), proxy=proxy, tls=None, server_hostname=None)
    return caught.value


@on_both_loops
async def test_a_wrong_password_is_told_without_showing_it() -> None:
    async with ConnectProxy(login="alice:right") as through:
        error = await refusal(parse(through.url.replace("right", "geheim"), "HTTPS_PROXY"))
        assert error.code == "proxy_login"
        assert "another user or password" in str(error) and "HTTPS_PROXY" in str(error)
        assert "geheim" not in f"{error} {error!r}"


@on_both_loops
async def test_a_proxy_that_is_away_hangs_up_or_has_no_name_is_told() -> None:
    silent = asyncio.Event()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        silent.set()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    number = server.sockets[0].getsockname()[1]
    error = await refusal(parse(f"127.0.0.1:{number}", "proxy"))
    assert error.code == "proxy_away" and "it closed the connection" in str(error)
    server.close()
    await server.wait_closed()
    error = await refusal(parse(f"127.0.0.1:{number}", "proxy"))
    assert error.code == "proxy_away" and "connection refused" in str(error)
    error = await refusal(parse("proxy.invalid:1", "proxy"))
    assert error.code == "proxy_away" and "check that it runs and that proxy names it" in str(error)


async def test_a_proxy_that_says_nothing_is_given_up_in_time() -> None:
    async with ConnectProxy(answer=b"HTTP/1.1 ") as through, asyncio.timeout(5):
        proxy = parse(through.url, "proxy")
        assert proxy.seconds <= 10
        error = await refusal(replace(proxy, seconds=0.3))
        assert error.code == "proxy_away" and "no answer within 0.3 s" in str(error)


@on_both_loops
async def test_a_host_with_letters_of_its_own_is_asked_for_by_its_wire_name() -> None:
    async with ConnectProxy(answer=b"HTTP/1.1 503 x\r\n\r\n") as through:
        proxy = parse(through.url, "proxy")
        with pytest.raises(ProxyError):
            await open_streams(("gpü.example", 443), proxy=proxy, tls=None, server_hostname=None)
        with pytest.raises(ProxyError):
            await open_streams(("2001:db8::1", 443), proxy=proxy, tls=None, server_hostname=None)
        assert through.asked == ["xn--gp-yka.example:443", "[2001:db8::1]:443"]
        with pytest.raises(UnicodeError):
            await open_streams(("a\r\nb", 443), proxy=proxy, tls=None, server_hostname=None)


# ── names with several addresses ──────────────────────────────────────────────────────────────


class _TwoAddresses(asyncio.SelectorEventLoop):
    """Gives every name two addresses, which this machine's resolver has no name for."""

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        hosts = [host] if host[0].isdigit() else ["127.0.0.1", "127.0.0.2"]
        return [(*kind, (one, port)) for one in hosts]


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels refuse instead")
@pytest.mark.parametrize("proxied", [False, True])
def test_an_address_that_is_silent_keeps_the_next_one_not_waiting(proxied: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if proxied:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.write(await reader.readexactly(5))
        writer.close()

    async def talk_to_it() -> bytes:
        with silent_port() as number:
            async with await asyncio.start_server(serve, "127.0.0.2", number):
                proxy = parse(f"http://proxy.example:{number}", "proxy") if proxied else None
                address = ("gpu.example.org", number)
                async with asyncio.timeout(3):
                    reader, writer = await open_streams(
                        address, proxy=proxy, tls=None, server_hostname=None
                    )
                    writer.write(b"hello")
                    answer = await reader.read(5)
                writer.transport.abort()
                return answer

    with asyncio.Runner(loop_factory=_TwoAddresses) as runner:
        assert runner.run(talk_to_it()) == b"hello"
