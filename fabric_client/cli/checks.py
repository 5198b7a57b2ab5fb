"""The checks of ``fabric-client doctor``."""

from __future__ import annotations

import asyncio
import ssl
import time
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path

import aiohttp
import msgspec

from fabric_client import findings
from fabric_client.config import Config
from fabric_client.hardware.machine import Machine
from fabric_client.identity import Identity, NotJoined, explain, remembered_models
from fabric_client.owner import state
from fabric_client.owner.process_lock import is_running
from fabric_client.owner.state import State
from fabric_client.supervisor import make_watcher
from protocol.control.link import LENGTH
from protocol.findings import clock
from protocol.messages import Ping, encode
from protocol.names import CONTROL_ALPN, SERVER_NAME, TUNNEL_ALPN
from runtime.descriptors import open_files_limit
from runtime.doctor import Check, check_disk, examine, in_thread
from runtime.findings import Finding, Level, descriptors, ok
from runtime.http_proxy import Proxies, ProxyError, open_streams
from runtime.port_probe import Target, judge, probe, resolve
from runtime.version import VERSION

PROXY_SECONDS = 15.0
ENGINE_SECONDS = 20.0
"""Time for the engines: each is asked several questions."""
_AGAIN = "ask the operator for a new invitation, and join again with --replace"


async def find(settings: Config) -> list[Finding]:
    """Run all checks."""
    try:
        return await examine(_checks(settings))
    except ssl.SSLError as error:  # of the node's own files
        return [Finding("identity", "FAIL", explain(error), "identity_damaged", _AGAIN)]


def _checks(settings: Config) -> list[Check]:
    running = is_running(settings.data)
    last = state.read(settings.data)
    checks = [
        Check("engine", partial(_engines, settings), ENGINE_SECONDS),
        Check("gpu", partial(_gpu, settings.data)),
        Check("disk", partial(check_disk, settings.data)),
        Check("descriptors", _descriptors),
    ]
    try:
        identity = Identity.load(settings.data)
    except NotJoined as error:
        what, _, remedy = str(error).rstrip(".").partition(": ")
        finding = Finding("identity", "FAIL", what, "not_joined", remedy)
        return [Check("identity", partial(_given, finding)), *checks]
    proxies = settings.proxies()
    server = _Server(identity, proxies)
    through = [] if proxies.proxy is None else [Check("proxy", server.proxy, PROXY_SECONDS)]
    return [
        Check("node", partial(_node, running, last)),
        Check("identity", partial(_certificate, identity)),
        *through,
        Check("dns", server.names),
        Check("control port", server.control_port),
        Check("proxy port", server.proxy_port),
        Check("api port", server.api_port),
        *checks,
    ]


async def _given(finding: Finding) -> list[Finding]:
    return [finding]


# ── this machine ──────────────────────────────────────────────────────────────────────────────


async def _engines(settings: Config) -> list[Finding]:
    async with aiohttp.ClientSession() as session:
        watcher = make_watcher(session, settings, remembered_models(settings.data))
        reports = await watcher.refresh()
    return findings.engines(reports, watcher.offer.patterns)


async def _gpu(data: Path) -> list[Finding]:
    now = time.monotonic()
    gpus = await in_thread(lambda: Machine(data, now=now).gpus(now))  # a driver may hang
    if not gpus:
        return [ok("gpu", "none that reports figures (NVIDIA's driver, or Linux' amdgpu)")]
    return [ok("gpu", ", ".join(gpu.name for gpu in gpus))]


async def _descriptors() -> list[Finding]:
    return [descriptors(open_files_limit(), 256)]


async def _certificate(identity: Identity) -> list[Finding]:
    return [identity.judge_dates(time.time(), _AGAIN)]


async def _node(running: bool, last: State | None) -> list[Finding]:
    if not running:
        reason = f"; it ended: {last.reason}" if last is not None and last.reason else ""
        remedy = "start it with 'fabric-client run'"
        return [Finding("node", "warn", f"it is not running{reason}", "not_running", remedy)]
    if last is None:
        return [ok("node", "it is starting")]
    found = [findings.releases(VERSION, last.server_release)]
    if not last.linked:
        return [findings.not_linked(last.reason), *found]
    found += [one for one in last.findings if one.code == "no_tunnels"]
    if last.paused:
        remedy = "'fabric-client resume', or see its settings"
        found.append(Finding("node", "warn", f"paused: {last.paused}", "paused", remedy))
    return [ok("link", f"linked, {last.tunnels} tunnels, {last.active} running"), *found]


# ── the server, as this node sees it ──────────────────────────────────────────────────────────


class _Server:
    """The server's names and those of its ports that nodes use."""

    def __init__(self, identity: Identity, proxies: Proxies) -> None:
        self._identity = identity
        self._proxies = proxies
        self._addresses: asyncio.Future[list[list[str] | BaseException]] | None = None

    async def proxy(self) -> list[Finding]:
        """Check the proxy by itself: that it is there, and opens a way to the server."""
        host, port = self._identity.host, self._identity.control_port
        proxy = self._proxies.for_host(host, port)
        if proxy is None:
            return [ok("proxy", f"not used for {host}: NO_PROXY, or this machine itself")]
        try:
            _, writer = await open_streams(
                (host, port), proxy=proxy, tls=None, server_hostname=None
            )
        except ProxyError as error:
            return [Finding("proxy", "FAIL", error.what, error.code, error.remedy)]
        writer.transport.abort()
        return [ok("proxy", f"{proxy}, from {proxy.source}, opens a way to {host}, port {port}")]

    async def names(self) -> list[Finding]:
        """Check that the server's names have addresses; one that has is enough.

        Names of hosts that are reached through a proxy are looked up by that one.
        """
        resolved = dict(zip(self._identity.hosts, await self._resolved(), strict=True))
        level: Level = "warn" if any(isinstance(one, list) for one in resolved.values()) else "FAIL"
        remedy = "check the name and this machine's DNS; if the server was renamed, join again"
        return [
            ok("dns", f"{host} is {self._where(host) or ', '.join(one)}")
            if isinstance(one, list)
            else Finding("dns", level, f"{host}: {explain(one)}", "dns_failed", remedy)
            for host, one in resolved.items()
        ]

    async def control_port(self) -> list[Finding]:
        ping = encode(Ping(1))
        request = LENGTH.pack(len(ping)) + ping
        identity = self._identity
        context = identity.context(CONTROL_ALPN)
        return await self._port(
            Target("control port", identity.control_port, context, SERVER_NAME, request)
        )

    async def proxy_port(self) -> list[Finding]:
        identity = self._identity
        context = identity.context(TUNNEL_ALPN)
        return await self._port(Target("proxy port", identity.proxy_port, context, SERVER_NAME))

    async def api_port(self) -> list[Finding]:
        """Check the port for joining, and compare the clocks by the ``Date`` of its answer."""
        identity = self._identity
        context = identity.context("http/1.1")
        request = (
            f"GET /health/live HTTP/1.1\r\nhost: {SERVER_NAME}\r\nconnection: close\r\n\r\n"
        ).encode()
        target = Target("api port", identity.api_port, context, SERVER_NAME, request)
        began = time.time()
        answer = bytearray()
        found = await self._port(target, answer)
        ahead = _ahead(bytes(answer), began)
        if ahead is not None:
            found.append(clock(ahead, "this machine's", "the server's"))
        return found

    async def _port(self, target: Target, answer: bytearray | None = None) -> list[Finding]:
        """Check a port at each name; where it answers at one, the others are but warnings."""
        resolved = dict(zip(self._identity.hosts, await self._resolved(), strict=True))
        hosts = {host: one for host, one in resolved.items() if isinstance(one, list)}
        if not hosts:
            what = "not checked, because the server's name has no address"
            return [Finding(target.check, "warn", what, "not_checked", "see the line of dns")]
        results = await asyncio.gather(
            *(
                probe(one, target, self._proxies.for_host(host, target.port))
                for host, one in hosts.items()
            )
        )
        found = []
        for host, probed in zip(hosts, results, strict=True):
            found.append(judge(host, target, probed, explain))
            if answer is not None and not answer:
                answer += probed.answer
        if any(one.level != "FAIL" for one in found):
            return [msgspec.structs.replace(one, level=_less(one.level)) for one in found]
        return found

    async def _resolved(self) -> list[list[str] | BaseException]:
        if self._addresses is None:
            each = (self._resolve(host) for host in self._identity.hosts)
            self._addresses = asyncio.gather(*each, return_exceptions=True)
        return await asyncio.shield(self._addresses)

    async def _resolve(self, host: str) -> list[str]:
        return [host] if self._where(host) else await resolve(host)

    def _where(self, host: str) -> str:
        """Return who looks up a name, if this machine does not."""
        proxy = self._proxies.for_host(host, self._identity.control_port)
        return "" if proxy is None else "looked up by the proxy"


def _less(level: Level) -> Level:
    return "warn" if level == "FAIL" else level


def _ahead(answer: bytes, began: float) -> float | None:
    """Return by how many seconds this clock is ahead of the server's; None if it told no time."""
    for line in answer.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"date":
            try:
                told = parsedate_to_datetime(value.decode("latin-1").strip()).timestamp()
            except (ValueError, OverflowError):
                return None
            return began - told
    return None
